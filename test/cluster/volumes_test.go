package cluster

import (
	"strings"
	"testing"
	"time"
)

const claim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: huge}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Pi}}}
`

func podWith(name, claim string) string {
	return strings.NewReplacer("NAME", name, "CLAIM", claim).Replace(`
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: CLAIM}}]
`)
}

// volumes binds a claim of the default StorageClass, keeps what a pod writes for the
// next one, and removes it with the claim.
func (c *Cluster) volumes(t *testing.T) {
	c.Apply("claim", claim)
	c.Apply("writer", podWith("writer", "data"))
	c.Kubectl("wait", "--for=condition=ready", "pod/writer", "--timeout=60s")
	if _, err := c.HTTP(c.ip("writer"), "/write?path=/data/note&text=kept"); err != nil {
		t.Fatal(err)
	}
	c.Kubectl("delete", "pod", "writer", "--now")
	c.Apply("reader", podWith("reader", "data"))
	c.Kubectl("wait", "--for=condition=ready", "pod/reader", "--timeout=60s")
	if note, err := c.HTTP(c.ip("reader"), "/file?path=/data/note"); err != nil || note != "kept" {
		t.Errorf("the next pod reads %q, %v", note, err)
	}
	c.Kubectl("delete", "pod", "reader", "--now")
	const directories = "/var/lib/k3s9p/storage"
	if list := c.Must("ls", directories); !strings.Contains(list, "_default_data") {
		t.Errorf("the volumes are %q", list)
	}
	c.Kubectl("delete", "pvc", "data")
	c.Await("the end of the volume", time.Minute, func() bool { return strings.TrimSpace(c.Must("ls", directories)) == "" })
	for claim, why := range map[string]string{
		"shared": "ReadWriteOnce and ReadWriteOncePod volumes, not ReadWriteMany",
		"huge":   "1Pi are more than the whole filesystem of " + directories + " has",
	} {
		c.Apply(claim, podWith("impatient", claim))
		c.Await("the refusal of the claim "+claim, time.Minute, func() bool { return strings.Contains(c.Kubectl("describe", "pvc", claim), why) })
		c.Kubectl("delete", "pod", "impatient", "--now")
	}
}
