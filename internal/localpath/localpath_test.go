package localpath

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const claims = `
- metadata: {namespace: default, name: data, uid: "1", annotations: {volume.kubernetes.io/selected-node: here}}
  spec: {storageClassName: local-path, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
  status: {phase: Pending}
- metadata: {namespace: default, name: no-pod-yet, uid: "2"}
  spec: {storageClassName: local-path, accessModes: [ReadWriteOnce]}
  status: {phase: Pending}
- metadata: {namespace: default, name: other-class, uid: "3", annotations: {volume.kubernetes.io/selected-node: here}}
  spec: {storageClassName: fast, accessModes: [ReadWriteOnce]}
  status: {phase: Pending}
- metadata: {namespace: default, name: shared, uid: "4", annotations: {volume.kubernetes.io/selected-node: here}}
  spec: {storageClassName: local-path, accessModes: [ReadWriteMany]}
  status: {phase: Pending}
- metadata: {namespace: default, name: made, uid: "5", annotations: {volume.kubernetes.io/selected-node: here}}
  spec: {storageClassName: local-path, accessModes: [ReadWriteOnce]}
  status: {phase: Pending}
- metadata: {namespace: default, name: bound, uid: "6", annotations: {volume.kubernetes.io/selected-node: here}}
  spec: {storageClassName: local-path, accessModes: [ReadWriteOncePod], volumeName: pvc-6}
  status: {phase: Bound}
- metadata: {namespace: default, name: block, uid: "7", annotations: {volume.kubernetes.io/selected-node: here}}
  spec: {storageClassName: local-path, accessModes: [ReadWriteOnce], volumeMode: Block}
  status: {phase: Pending}
- metadata: {namespace: default, name: huge, uid: "10", annotations: {volume.kubernetes.io/selected-node: here}}
  spec: {storageClassName: local-path, accessModes: [ReadWriteOnce], resources: {requests: {storage: 101Gi}}}
  status: {phase: Pending}
`

const volumes = `
- metadata: {name: pvc-5, annotations: {pv.kubernetes.io/provisioned-by: k3s9p.local/local-path}}
  spec: {persistentVolumeReclaimPolicy: Delete, hostPath: {path: /data/pvc-5_default_made}}
  status: {phase: Available}
- metadata: {name: pvc-8, annotations: {pv.kubernetes.io/provisioned-by: k3s9p.local/local-path}}
  spec:
    persistentVolumeReclaimPolicy: Delete
    hostPath: {path: /data/pvc-8_default_gone}
    nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [here]}]}]}}
  status: {phase: Released}
- metadata: {name: pvc-11, annotations: {pv.kubernetes.io/provisioned-by: k3s9p.local/local-path}}
  spec:
    persistentVolumeReclaimPolicy: Delete
    hostPath: {path: /data/pvc-11_default_there}
    nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [there]}]}]}}
  status: {phase: Released}
- metadata: {name: pvc-9, annotations: {pv.kubernetes.io/provisioned-by: k3s9p.local/local-path}}
  spec: {persistentVolumeReclaimPolicy: Retain, hostPath: {path: /data/pvc-9_default_kept}}
  status: {phase: Released}
- metadata: {name: theirs}
  spec: {persistentVolumeReclaimPolicy: Delete, hostPath: {path: /srv}}
  status: {phase: Released}
`

func parse[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := yaml.UnmarshalStrict([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWanted(t *testing.T) {
	create, remove, refused := Wanted(Place{Dir: "/data", Node: "here", Size: 100 << 30}, parse[[]corev1.PersistentVolumeClaim](t, claims), parse[[]corev1.PersistentVolume](t, volumes))
	var got []string
	for _, v := range create {
		got = append(got, "create "+v.Name+" "+v.Spec.HostPath.Path+" "+v.Spec.Capacity.Storage().String())
	}
	for _, v := range remove {
		got = append(got, "remove "+v.Name)
	}
	for _, r := range refused {
		got = append(got, "refuse "+r.Claim.Name)
	}
	want := []string{"create pvc-1 /data/pvc-1_default_data 1Gi", "remove pvc-8", "refuse shared", "refuse block", "refuse huge"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A user may write a PersistentVolume that looks like ours.
// A volume that is deleted before its claim is gone with it, and its directory then too.
func TestEnded(t *testing.T) {
	const volume = `
- metadata: {name: pvc-6, deletionTimestamp: "2026-11-26T00:00:00Z", annotations: {pv.kubernetes.io/provisioned-by: k3s9p.local/local-path}}
  spec:
    persistentVolumeReclaimPolicy: POLICY
    hostPath: {path: /data/pvc-6_default_bound}
    nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [NODE]}]}]}}
  status: {phase: Bound}
`
	bound, none := parse[[]corev1.PersistentVolumeClaim](t, claims), []corev1.PersistentVolumeClaim(nil)
	of := func(policy, node string) []corev1.PersistentVolume {
		return parse[[]corev1.PersistentVolume](t, strings.NewReplacer("POLICY", policy, "NODE", node).Replace(volume))
	}
	ending := make(map[string]*corev1.PersistentVolume)
	look := func(claims []corev1.PersistentVolumeClaim, volumes []corev1.PersistentVolume) (names []string) {
		for _, v := range Ended(Place{Dir: "/data", Node: "here"}, ending, claims, volumes) {
			names = append(names, v.Name)
		}
		return names
	}
	for _, step := range []struct {
		name    string
		claims  []corev1.PersistentVolumeClaim
		volumes []corev1.PersistentVolume
		want    []string
	}{
		{"bound", bound, of("Delete", "here"), nil},
		{"its claim goes", none, of("Delete", "here"), nil},
		{"gone", none, nil, []string{"pvc-6"}},
		{"gone already", none, nil, nil},
		{"once more", bound, of("Delete", "here"), nil},
		{"gone by force, with its claim there", bound, nil, nil},
		{"the claim goes too", none, nil, []string{"pvc-6"}},
		{"again", bound, of("Delete", "here"), nil},
		{"kept after all", bound, of("Retain", "here"), nil},
		{"gone, and kept", none, nil, nil},
		{"another node's", bound, of("Delete", "there"), nil},
		{"the other node's is gone", none, nil, nil},
	} {
		if diff := cmp.Diff(step.want, look(step.claims, step.volumes)); diff != "" {
			t.Errorf("%s:\n%s", step.name, diff)
		}
	}
}

func TestOnlyOurDirectoriesAreRemoved(t *testing.T) {
	for path, ours := range map[string]bool{
		"/data/pvc-1_default_data": true, "/data/pvc-1/": true, "/data": false, "/": false, "/srv": false, "/data/../srv": false,
		"/data/pvc-1/../../srv": false, "/data/pvc-1/deep": false, "/data/other": false, "": false,
	} {
		v := &corev1.PersistentVolume{}
		v.Name, v.Spec.HostPath = "pvc-1", &corev1.HostPathVolumeSource{Path: path}
		if dir, err := Directory("/data", v); (err == nil) != ours {
			t.Errorf("%q: %q, %v", path, dir, err)
		}
	}
}
