package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The programs of a node, as they are called in the bundle, in status and in logs.
const (
	kine         = "kine"
	controlPlane = "kube-control-plane" // kube-apiserver, kube-controller-manager and kube-scheduler
	containerd   = "containerd"
	kubelet      = "kubelet"
	coredns      = "coredns"
)

// datastore starts kine: the etcd API on SQLite.
func (n *Node) datastore(context.Context) error {
	for _, file := range []string{n.paths.database(), n.paths.datastore()} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
	}
	return n.startWith(kine, 10*time.Second, append(n.environment(), datastoreRuntime()...),
		"--endpoint=sqlite://"+n.paths.database()+"?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate",
		"--listen-address=unix://"+n.paths.datastore(),
		// More would wait for each other in SQLite, each with a thread and caches of its own.
		"--datastore-max-open-connections=8",
		"--metrics-bind-address=0")
}

// datastoreRuntime are the settings of two memory managers and of a scheduler, as
// environment variables, that save a third of kine's system calls: a sandbox pays for
// each. What the user has set stays.
func datastoreRuntime() (env []string) {
	for _, setting := range []struct{ name, value string }{
		// SQLite allocates in the threads that call it. In glibc each of them gets an arena,
		// which gives memory back and takes it again all the time (mallopt(3)).
		{"GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=67108864:glibc.malloc.top_pad=4194304"},
		// Who waits for SQLite leaves its processor to others, who then fetch each other's
		// work. All that writes is one at a time anyway.
		{"GOMAXPROCS", strconv.Itoa(max(1, runtime.NumCPU()/2))},
	} {
		if _, given := os.LookupEnv(setting.name); !given {
			env = append(env, setting.name+"="+setting.value)
		}
	}
	return env
}

// controlPlane starts the three programs of the control plane, which are one process, and
// waits until the apiserver answers. What it makes at its start may be missing yet: see
// controlPlaneReady.
func (n *Node) controlPlane(ctx context.Context) error {
	if err := n.supervisor.Await(ctx, func(context.Context) error { return dials("unix", n.paths.datastore()) }, kine); err != nil {
		return err
	}
	args := slices.Concat(
		[]string{"kube-apiserver"}, n.apiserverArgs(), flagsOf(n.options.APIServerArgs),
		[]string{"--", "kube-controller-manager"}, n.controllerManagerArgs(), flagsOf(n.options.ControllerManagerArgs),
		[]string{"--", "kube-scheduler"}, n.clientArgs("scheduler"), flagsOf(n.options.SchedulerArgs))
	if n.options.has(metricsAddOn) {
		args = slices.Concat(args, []string{"--", "metrics-server"}, n.metricsServerArgs())
	}
	if err := n.start(controlPlane, 20*time.Second, args...); err != nil {
		return err
	}
	client, err := newClient(n.paths.conf("super-admin"))
	if err != nil {
		return err
	}
	n.client = client
	return n.supervisor.Await(ctx, func(ctx context.Context) error { return client.get(ctx, "/api/v1/namespaces/kube-system", nil) }, kine, controlPlane)
}

// controlPlaneReady asks whether the apiserver has all that it makes at its start.
func (n *Node) controlPlaneReady(ctx context.Context) error { return n.client.get(ctx, "/readyz", nil) }

func (n *Node) apiserverArgs() []string {
	pki := n.paths.pkiFile
	return []string{
		"--advertise-address=" + n.cluster.Address().String(),
		fmt.Sprintf("--secure-port=%d", port),
		"--etcd-servers=unix://" + n.paths.datastore(),
		"--service-cluster-ip-range=" + n.cluster.ServiceCIDR.String(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--enable-bootstrap-token-auth=true",
		"--allow-privileged=true",
		"--client-ca-file=" + pki("ca.crt"),
		"--tls-cert-file=" + pki("apiserver.crt"),
		"--tls-private-key-file=" + pki("apiserver.key"),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		// The name of a node in a sandbox resolves for nobody.
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		"--proxy-client-cert-file=" + pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + pki("front-proxy-client.key"),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki("sa.pub"),
		"--service-account-signing-key-file=" + pki("sa.key"),
		"--endpoint-reconciler-type=lease",
	}
}

// again makes objects until the apiserver takes them: it answers before its admission
// plugins are ready, which refuse everything until then (k8s.io/apiserver/pkg/admission,
// Handler.WaitForReady). What it finds wrong about an object will stay so.
func (n *Node) again(makes func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		var wrong error
		err := n.supervisor.Await(ctx, func(ctx context.Context) error {
			err := makes(ctx)
			if answered(err, http.StatusBadRequest) || answered(err, http.StatusUnprocessableEntity) {
				wrong = err
				return nil
			}
			return err
		}, n.distribution().server...)
		return errors.Join(err, wrong)
	}
}

// roles binds the users of kubeadm's certificates to what they may do; kubeadm does
// the same at the end of its init.
func (n *Node) roles(ctx context.Context) error {
	group := func(name string) rbacv1.Subject {
		return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name}
	}
	user := func(name string) rbacv1.Subject {
		return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}
	}
	const bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
	for _, binding := range []struct {
		name, role string
		subject    rbacv1.Subject
	}{
		{"kubeadm:cluster-admins", "cluster-admin", group("kubeadm:cluster-admins")},
		{"k3s9p:kubelet-api-admin", "system:kubelet-api-admin", user("kube-apiserver-kubelet-client")},
	} {
		err := n.client.ensure(ctx, bindings, &rbacv1.ClusterRoleBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRoleBinding"},
			ObjectMeta: metav1.ObjectMeta{Name: binding.name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: binding.role},
			Subjects:   []rbacv1.Subject{binding.subject},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// clientArgs are those of a program that works through the apiserver.
func (n *Node) clientArgs(user string) []string {
	conf := n.paths.conf(user)
	return []string{"--kubeconfig=" + conf, "--authentication-kubeconfig=" + conf, "--authorization-kubeconfig=" + conf,
		// Their metrics are the apiserver's, which is the same process; to serve them
		// again takes two RSA keys each.
		"--secure-port=0", "--leader-elect=false"}
}

func (n *Node) controllerManagerArgs() []string {
	pki := n.paths.pkiFile
	return append(n.clientArgs("controller-manager"),
		"--client-ca-file="+pki("ca.crt"),
		"--requestheader-client-ca-file="+pki("front-proxy-ca.crt"),
		"--cluster-signing-cert-file="+pki("ca.crt"),
		"--cluster-signing-key-file="+pki("ca.key"),
		"--root-ca-file="+pki("ca.crt"),
		"--service-account-private-key-file="+pki("sa.key"),
		"--use-service-account-credentials=true",
		"--service-cluster-ip-range="+n.cluster.ServiceCIDR.String(),
		"--cluster-cidr="+n.cluster.ClusterCIDR.String(),
		// Nodes that join are given theirs; this one has taken the first.
		"--allocate-node-cidrs=true", fmt.Sprintf("--node-cidr-mask-size=%d", n.cluster.nodeBits()),
		"--cluster-signing-duration="+validity,
		"--controllers=*,bootstrapsigner,tokencleaner",
		// At a first start each controller asks for an account of its own: with the
		// default of 20 requests a second that takes five seconds.
		"--kube-api-qps=200", "--kube-api-burst=400",
		"--flex-volume-plugin-dir="+n.paths.kubelet()+"/volume-plugins",
	)
}
