// Package localpath makes volumes that are directories of the node: what the
// default StorageClass of a cluster of one node needs.
//
// It decides from claims and volumes what is to be made and removed; the requests
// are somebody else's. It is our own because the provisioners that there are
// (rancher/local-path-provisioner, sig-storage-lib-external-provisioner) are programs
// or libraries around client-go, larger than what they would replace, and one of
// them starts a pod with an image to be pulled for each directory.
//
// The size of a claim is not enforced: a directory has none.
package localpath

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// Class is the name of the StorageClass, as k3s's and kind's call it.
	Class = "local-path"
	// Provisioner is who makes its volumes.
	Provisioner = "k3s9p.local/local-path"
	// selectedNode is where the scheduler wants the first pod of a claim to run
	// (k8s.io/component-helpers/storage/volume).
	selectedNode  = "volume.kubernetes.io/selected-node"
	provisionedBy = "pv.kubernetes.io/provisioned-by"
)

// Refusal is a claim that no directory can be.
type Refusal struct {
	Claim  *corev1.PersistentVolumeClaim
	Reason string
}

// Place is where the directories are.
type Place struct {
	Dir  string // they are below it
	Node string
	Size int64 // of its filesystem, in bytes; 0 if that is not known
}

// Wanted returns the volumes to make for claims of the StorageClass, and the
// volumes to remove: released, with reclaim policy Delete. Claims that wait for their first
// pod are left out, and so are those whose volume exists.
func Wanted(place Place, claims []corev1.PersistentVolumeClaim, volumes []corev1.PersistentVolume) (create, remove []*corev1.PersistentVolume, refused []Refusal) {
	there := make(map[string]bool)
	for i := range volumes {
		v := &volumes[i]
		there[v.Name] = true
		if place.deletes(v) && v.Status.Phase == corev1.VolumeReleased && v.DeletionTimestamp == nil {
			remove = append(remove, v)
		}
	}
	for i := range claims {
		c := &claims[i]
		ours := c.Spec.StorageClassName != nil && *c.Spec.StorageClassName == Class
		if !ours || c.Status.Phase != corev1.ClaimPending || c.Spec.VolumeName != "" || c.DeletionTimestamp != nil ||
			c.Annotations[selectedNode] != place.Node || there["pvc-"+string(c.UID)] {
			continue
		}
		if reason := place.refusal(c); reason != "" {
			refused = append(refused, Refusal{c, reason})
			continue
		}
		create = append(create, place.volumeOf(c))
	}
	return create, remove, refused
}

// Ended returns the volumes that are gone, of those that were being deleted at the last
// look, which ending holds by name; it brings that up to date. One that a user deletes
// before its claim goes with it, and is never seen released.
func Ended(place Place, ending map[string]*corev1.PersistentVolume, claims []corev1.PersistentVolumeClaim, volumes []corev1.PersistentVolume) (ended []*corev1.PersistentVolume) {
	there := make(map[string]bool)
	for i := range volumes {
		there[volumes[i].Name] = true
	}
	for i := range claims { // somebody has taken the volume away from it, and may bring it back
		there[claims[i].Spec.VolumeName] = true
	}
	for name, v := range ending {
		if !there[name] {
			ended = append(ended, v)
			delete(ending, name)
		}
	}
	for i := range volumes {
		v := &volumes[i]
		delete(ending, v.Name)
		if place.deletes(v) && v.DeletionTimestamp != nil {
			ending[v.Name] = v
		}
	}
	return ended
}

// deletes reports whether a volume was made here, and ends with its claim.
func (p Place) deletes(v *corev1.PersistentVolume) bool {
	return v.Annotations[provisionedBy] == Provisioner && isOn(v, p.Node) && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// isOn reports whether a volume is a directory of a node.
func isOn(v *corev1.PersistentVolume, node string) bool {
	return reflect.DeepEqual(v.Spec.NodeAffinity, on(node))
}

// on keeps pods with a volume on the node that has it.
func on(node string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}}
}

func (p Place) refusal(c *corev1.PersistentVolumeClaim) string {
	for _, mode := range c.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return fmt.Sprintf("the StorageClass %s has ReadWriteOnce and ReadWriteOncePod volumes, not %s", Class, mode)
		}
	}
	size := c.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case p.Size > 0 && size.CmpInt64(p.Size) > 0:
		return fmt.Sprintf("%s are more than the whole filesystem of %s has, %s", size.String(), p.Dir, resource.NewQuantity(p.Size, resource.BinarySI))
	case c.Spec.VolumeMode != nil && *c.Spec.VolumeMode != corev1.PersistentVolumeFilesystem:
		return "a directory is no block device"
	case c.Spec.DataSource != nil || c.Spec.DataSourceRef != nil:
		return "a directory is not made of a snapshot or another volume"
	case c.Spec.Selector != nil:
		return "a claim with a selector wants a volume that exists"
	}
	return ""
}

func (p Place) volumeOf(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	kind := corev1.HostPathDirectoryOrCreate
	name := "pvc-" + string(c.UID)
	return &corev1.PersistentVolume{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: Provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: c.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   c.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName:              Class,
			ClaimRef:                      &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(p.Dir, name+"_"+c.Namespace+"_"+c.Name), Type: &kind},
			},
			NodeAffinity: on(p.Node),
		},
	}
}

// Directory is that of a volume, which has to be one below dir: a volume is an
// object that users can write too.
func Directory(dir string, v *corev1.PersistentVolume) (string, error) {
	if v.Spec.HostPath == nil {
		return "", fmt.Errorf("volume %s is no directory", v.Name)
	}
	path := filepath.Clean(v.Spec.HostPath.Path)
	if filepath.Dir(path) != filepath.Clean(dir) || !strings.HasPrefix(filepath.Base(path), v.Name) || slices.Contains([]string{".", ".."}, filepath.Base(path)) {
		return "", fmt.Errorf("the directory %s of volume %s is not one of %s", path, v.Name, dir)
	}
	return path, nil
}
