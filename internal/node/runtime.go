package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k3s9p/internal/config"
	"k3s9p/internal/hint"
)

// containerRuntime starts containerd.
func (n *Node) containerRuntime(context.Context) error {
	if err := os.MkdirAll(n.paths.containerd(), 0o711); err != nil {
		return err
	}
	return n.startWith(containerd, 10*time.Second, n.pullEnvironment(), ContainerdArgs(n.files)...)
}

// ContainerdArgs are the arguments of containerd.
func ContainerdArgs(files config.Files) []string { return []string{"--config=" + files.Containerd} }

// runtimeReady waits for containerd's CRI service.
func (n *Node) runtimeReady(ctx context.Context) error {
	return n.supervisor.Await(ctx, func(ctx context.Context) error { return AskRuntime(ctx, n.plan.Settings.Containerd) }, append(n.distribution().server, containerd)...)
}

// AskRuntime asks containerd's CRI service whether it is there: the line about the
// boot of containerd comes before it is.
func AskRuntime(ctx context.Context, c config.Containerd) error {
	conn, err := grpc.NewClient("unix://"+c.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{})
	return err
}

// images imports what pods need that nobody pulls, and what the user brings.
func (n *Node) images(ctx context.Context) error {
	archives, err := archivesIn(filepath.Join(n.bundle, "images"))
	if err != nil {
		return err
	}
	if n.options.Images != "" {
		more, err := archivesIn(n.options.Images)
		if err != nil {
			return err
		}
		archives = append(archives, more...)
	}
	for _, archive := range archives {
		if err := n.importImage(ctx, archive); err != nil {
			return err
		}
		n.imported[archive] = stamp(archive)
	}
	return nil
}

// archivesIn lists the image archives of a directory.
func archivesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for image archives: %w", err)
	}
	var archives []string
	for _, entry := range entries {
		name := entry.Name()
		known := slices.ContainsFunc([]string{".tar", ".tar.gz", ".tgz", ".tar.zst"}, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
		if known && !entry.IsDir() {
			archives = append(archives, filepath.Join(dir, name))
		}
	}
	return archives, nil
}

func (n *Node) importImage(ctx context.Context, archive string) error {
	return ImportImages(ctx, n.program("ctr"), n.environment(), n.plan.Settings.Containerd, archive)
}

// ImportImages gives an archive to containerd, by ctr with its environment. The
// transfer service of containerd does not unpack for the snapshotter native, so ctr
// does it (--local).
func ImportImages(ctx context.Context, ctr string, env []string, c config.Containerd, archive string) error {
	cmd := exec.CommandContext(ctx, ctr, "--address="+c.Socket(), "--namespace=k8s.io",
		"images", "import", "--local", "--snapshotter="+c.Snapshotter, archive)
	cmd.Env = env
	if output, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return hint.Add(fmt.Errorf("import the images in %s: %w: %s", archive, err, oneLine(output)),
			"it has to be an archive as docker save or ctr images export writes them; remove it if it is not")
	}
	return nil
}

// stamp tells an archive that was changed from the one that was imported.
func stamp(archive string) string {
	info, err := os.Stat(archive)
	if err != nil {
		return ""
	}
	return fmt.Sprint(info.Size(), info.ModTime().UnixNano())
}

// watchImages imports archives that appear. It looks every few seconds: 9p reports
// no changes (inotify(7)).
func (n *Node) watchImages(ctx context.Context) {
	if n.options.Images == "" {
		return
	}
	ticker := time.NewTicker(3 * time.Second)
	defer ticker.Stop()
	seen := make(map[string]string)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		archives, err := archivesIn(n.options.Images)
		if err != nil {
			n.log.Warn("look for image archives", "error", err)
			continue
		}
		for _, archive := range archives {
			now := stamp(archive)
			if now == n.imported[archive] {
				continue
			}
			if seen[archive] != now { // it may still be written
				seen[archive] = now
				continue
			}
			n.imported[archive] = now // once, also if it fails
			if err := n.supervisor.Apart(func() error { return n.importImage(ctx, archive) }); err != nil {
				n.log.Error("import images", "archive", archive, "error", err)
				continue
			}
			n.log.Info("imported images", "archive", archive)
		}
	}
}

// proxyVariables reach containerd, which pulls images, and nobody else: the other
// programs talk to this machine only.
var proxyVariables = []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}

// environment is that of a program of the node. What is for k3s9p, a token among it, is
// nobody else's business.
func (n *Node) environment() []string {
	// What a killed program leaves in its temporary directory goes with the node.
	env := []string{"PATH=" + n.distribution().bin(n.paths, n.bundle) + ":" + searchPath(), "TMPDIR=" + n.paths.temporary()}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !slices.Contains([]string{"PATH", "TMPDIR", "NOTIFY_SOCKET"}, name) && !strings.HasPrefix(name, "K3S9P_") && !slices.Contains(proxyVariables, strings.ToUpper(name)) {
			env = append(env, entry)
		}
	}
	return env
}

func searchPath() string {
	if path := os.Getenv("PATH"); path != "" {
		return path
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// pullEnvironment is that of containerd.
func (n *Node) pullEnvironment() []string {
	return append(n.environment(), n.pullVariables()...)
}

// pullVariables are what that has more than the environment of other programs.
func (n *Node) pullVariables() (env []string) {
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		if upper := strings.ToUpper(name); slices.Contains(proxyVariables, upper) && upper != "NO_PROXY" && value != "" {
			env = append(env, entry)
		}
	}
	direct := []string{"127.0.0.0/8", "localhost", n.cluster.ClusterCIDR.String(), n.cluster.ServiceCIDR.String(), ".svc", ".cluster.local"}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		if value := os.Getenv(name); value != "" {
			direct = append([]string{value}, direct...)
			break
		}
	}
	return append(env, "NO_PROXY="+strings.Join(direct, ","))
}

// stopPods ends the pods as their owner would: by the runtime, so that networks are
// taken down and processes get their SIGTERM.
func (n *Node) stopPods(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+n.paths.Containerd(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	service := cri.NewRuntimeServiceClient(conn)
	containers, err := service.ListContainers(ctx, &cri.ListContainersRequest{
		Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return err
	}
	results := make(chan error)
	for _, c := range containers.Containers {
		go func() {
			_, err := service.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.Id, Timeout: podGrace})
			results <- err
		}()
	}
	for range containers.Containers {
		err = errors.Join(err, <-results)
	}
	sandboxes, listErr := service.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	for _, sandbox := range sandboxes.Items {
		go func() {
			_, err := service.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox.Id})
			results <- err
		}()
	}
	for range sandboxes.Items {
		err = errors.Join(err, <-results)
	}
	return err
}

// podGrace is how many seconds a container has between SIGTERM and SIGKILL when the
// node is stopped.
const podGrace = 2

func oneLine(output []byte) string { return strings.Join(strings.Fields(string(output)), " ") }
