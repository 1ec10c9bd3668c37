package cluster

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// claimOf is one of the default StorageClass.
func claimOf(name, mode, size string) string {
	return strings.NewReplacer("NAME", name, "MODE", mode, "SIZE", size).Replace(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME}
spec: {accessModes: [MODE], resources: {requests: {storage: SIZE}}}
`)
}

// manyVolumes has a pod with each kind of volume that needs no claim, and parts of one.
const manyVolumes = `
apiVersion: v1
kind: ConfigMap
metadata: {name: parts}
data: {one: first, two: second}
---
apiVersion: v1
kind: Pod
metadata: {name: volumes, labels: {part: third}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: k3s9p.local/web:1
    imagePullPolicy: Never
    ` + Probe + `
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: disk, mountPath: /part, subPath: deep/part}
    - {name: memory, mountPath: /memory}
    - {name: parts, mountPath: /single, subPath: two}
    - {name: projected, mountPath: /projected}
    - {name: node, mountPath: /node}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
  - {name: parts, configMap: {name: parts}}
  - {name: node, hostPath: {path: DATA/shown, type: DirectoryOrCreate}}
  - name: projected
    projected:
      sources:
      - configMap: {name: parts, items: [{key: one, path: one}]}
      - downwardAPI: {items: [{path: part, fieldRef: {fieldPath: "metadata.labels['part']"}}]}
      - serviceAccountToken: {path: token, expirationSeconds: 600}
`

func podWith(name, claim string) string {
	return strings.NewReplacer("NAME", name, "CLAIM", claim).Replace(`
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, volumeMounts: [{name: data, mountPath: /data}], ` + Probe + `}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: CLAIM}}]
`)
}

func (c *Cluster) volumes(t *testing.T) {
	t.Run("a claim", c.claimed)
	t.Run("ReadWriteOncePod", c.exclusive)
	t.Run("without a claim", c.manyVolumes)
	t.Run("claims that are refused", c.refused)
}

// directories has those of the default StorageClass.
func (c *Cluster) directories() string { return c.data + "/storage" }

// claimed binds a claim of the default StorageClass, keeps what a pod writes for the next
// one, and removes it with the claim.
func (c *Cluster) claimed(t *testing.T) {
	c.Apply("data", claimOf("data", "ReadWriteOnce", "64Mi"))
	c.Apply("writer", podWith("writer", "data"))
	c.Kubectl("wait", "--for=condition=ready", "pod/writer", "--timeout=60s")
	if _, err := c.AskPod(c.Pod("writer"), "/write?path=/data/note&text=kept"); err != nil {
		t.Fatal(err)
	}
	c.Kubectl("delete", "pod", "writer", "--now")
	c.Apply("reader", podWith("reader", "data"))
	c.Kubectl("wait", "--for=condition=ready", "pod/reader", "--timeout=60s")
	if note, err := c.AskPod(c.Pod("reader"), "/file?path=/data/note"); err != nil || note != "kept" {
		t.Errorf("the next pod reads %q, %v", note, err)
	}
	c.Kubectl("delete", "pod", "reader", "--now")
	if list := c.Must("ls", c.directories()); !strings.Contains(list, "_default_data") {
		t.Errorf("the volumes are %q", list)
	}
	c.Kubectl("delete", "pvc", "data")
	ended := func() bool { return strings.TrimSpace(c.Must("ls", c.directories())) == "" }
	c.Await("the end of the volume", time.Minute, ended)

	// The volume before its claim.
	c.Apply("claim", claimOf("other", "ReadWriteOnce", "64Mi"))
	c.Apply("other", podWith("other", "other"))
	c.Kubectl("wait", "--for=condition=ready", "pod/other", "--timeout=60s")
	c.Kubectl("delete", "pod", "other", "--now")
	if ended() {
		t.Error("the volume ended with its pod")
	}
	c.Kubectl("delete", "--wait=false", "pv", c.Kubectl("get", "pvc", "other", "-o", "jsonpath={.spec.volumeName}"))
	c.Kubectl("delete", "pvc", "other")
	c.Await("the end of the other volume", time.Minute, ended)
}

// refused says, of a claim that cannot be had, why.
func (c *Cluster) refused(*testing.T) {
	for _, refused := range []struct{ name, mode, size, why string }{
		{"shared", "ReadWriteMany", "64Mi", "ReadWriteOnce and ReadWriteOncePod volumes, not ReadWriteMany"},
		{"huge", "ReadWriteOnce", "1Pi", "1Pi are more than the whole filesystem of " + c.directories() + " has"},
	} {
		for range 2 { // the next one of the same name is told as well
			c.Apply("claim", claimOf(refused.name, refused.mode, refused.size))
			c.Apply("impatient", podWith("impatient", refused.name))
			c.Await("the refusal of the claim "+refused.name, time.Minute, func() bool {
				return strings.Contains(c.Kubectl("describe", "pvc", refused.name), refused.why)
			})
			c.Kubectl("delete", "pod", "impatient", "--now")
			c.Kubectl("delete", "pvc", refused.name)
		}
	}
}

// exclusive keeps the second pod of a ReadWriteOncePod claim waiting for the first.
func (c *Cluster) exclusive(t *testing.T) {
	c.Apply("exclusive", claimOf("exclusive", "ReadWriteOncePod", "64Mi"))
	c.Apply("first", podWith("first", "exclusive"))
	c.Kubectl("wait", "--for=condition=ready", "pod/first", "--timeout=60s")
	c.Apply("next", podWith("next", "exclusive"))
	c.Await("the reason why the next pod waits", time.Minute, func() bool {
		return strings.Contains(c.Kubectl("describe", "pod", "next"), "ReadWriteOncePod")
	})
	if phase := c.Pod("next").Status.Phase; phase != corev1.PodPending {
		t.Errorf("the next pod is %s", phase)
	}
	c.Kubectl("delete", "pod", "first", "--now")
	c.Kubectl("wait", "--for=condition=ready", "pod/next", "--timeout=60s")
	c.Kubectl("delete", "pod", "next", "--now")
	c.Kubectl("delete", "pvc", "exclusive")
}

// manyVolumes writes and reads what a pod has by volumes without a claim.
func (c *Cluster) manyVolumes(t *testing.T) {
	c.Apply("volumes", strings.ReplaceAll(manyVolumes, "DATA", c.data))
	c.Kubectl("wait", "--for=condition=ready", "pod/volumes", "--timeout=60s")
	pod := c.Pod("volumes")
	for _, path := range []string{"/disk/deep/part/note", "/memory/note", "/node/note"} {
		if answer, err := c.AskPod(pod, "/write?path="+path+"&text=kept"); err != nil {
			t.Errorf("write %s: %s, %v", path, answer, err)
		}
	}
	for path, want := range map[string]string{
		"/disk/deep/part/note": "kept", "/part/note": "kept", "/memory/note": "kept", "/single": "second",
		"/projected/one": "first", "/projected/part": "third",
	} {
		if text, err := c.AskPod(pod, "/file?path="+path); err != nil || text != want {
			t.Errorf("%s has %q, not %q, %v", path, text, want, err)
		}
	}
	if token, err := c.AskPod(pod, "/file?path=/projected/token"); err != nil || strings.Count(token, ".") != 2 {
		t.Errorf("the token is %q, %v", token, err)
	}
	if text := c.Read(c.data + "/shown/note"); text != "kept" {
		t.Errorf("the directory of the node has %q", text)
	}
	c.Kubectl("delete", "pod", "volumes", "--now")
	c.Kubectl("delete", "configmap", "parts")
}
