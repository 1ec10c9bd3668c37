package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/localpath"
	"k3s9p/internal/rmtree"
)

const (
	claimsPath  = "/api/v1/persistentvolumeclaims"
	volumesPath = "/api/v1/persistentvolumes"
)

// storage is the directory of the volumes that claims get.
func (p Paths) storage() string { return p.at("storage") }

// followClaims makes volumes for claims, and removes those that are released, until
// ctx ends.
func (n *Node) followClaims(ctx context.Context) {
	refused := make(map[string]bool)
	ending := make(map[string]*corev1.PersistentVolume) // by name: their directories go with them
	n.follow(ctx, []string{claimsPath, volumesPath}, func() error {
		var claims corev1.PersistentVolumeClaimList
		var volumes corev1.PersistentVolumeList
		if err := errors.Join(n.client.get(ctx, claimsPath, &claims), n.client.get(ctx, volumesPath, &volumes)); err != nil {
			return err
		}
		create, remove, refusals := localpath.Wanted(n.storagePlace(), claims.Items, volumes.Items)
		for _, r := range refusals {
			if key := string(r.Claim.UID) + " " + r.Reason; !refused[key] {
				refused[key] = true
				claim := corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: r.Claim.Namespace, Name: r.Claim.Name, UID: r.Claim.UID}
				n.warn(ctx, claim, "ProvisioningFailed", r.Reason)
			}
		}
		var failures error
		for _, v := range create {
			failures = errors.Join(failures, n.makeVolume(ctx, v))
		}
		for _, v := range remove {
			failures = errors.Join(failures, n.removeVolume(ctx, v))
		}
		for _, v := range localpath.Ended(n.storagePlace(), ending, claims.Items, volumes.Items) {
			if err := n.removeDirectory(v); err != nil {
				failures = errors.Join(failures, err)
				ending[v.Name] = v
			}
		}
		return failures
	})
}

func (n *Node) storagePlace() localpath.Place {
	place := localpath.Place{Dir: n.paths.storage(), Node: n.cluster.NodeName}
	var st unix.Statfs_t
	if err := unix.Statfs(n.paths.Data, &st); err == nil {
		place.Size = int64(st.Blocks) * st.Frsize
	}
	return place
}

func (n *Node) makeVolume(ctx context.Context, v *corev1.PersistentVolume) error {
	dir, err := localpath.Directory(n.paths.storage(), v)
	if err == nil {
		err = os.MkdirAll(dir, 0o777)
	}
	if err == nil {
		err = os.Chmod(dir, 0o777) // for pods of any user, whatever the umask is
	}
	if err == nil {
		err = n.client.ensure(ctx, volumesPath, v)
	}
	if err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	n.log.Info("made a volume", "volume", v.Name, "claim", v.Spec.ClaimRef.Namespace+"/"+v.Spec.ClaimRef.Name)
	return nil
}

func (n *Node) removeVolume(ctx context.Context, v *corev1.PersistentVolume) error {
	if err := n.removeDirectory(v); err != nil {
		return err
	}
	_, err := n.client.do(ctx, http.MethodDelete, volumesPath+"/"+v.Name, nil)
	if err != nil && !answered(err, http.StatusNotFound) {
		return fmt.Errorf("remove volume %s: %w", v.Name, err)
	}
	return nil
}

func (n *Node) removeDirectory(v *corev1.PersistentVolume) error {
	dir, err := localpath.Directory(n.paths.storage(), v)
	if err == nil {
		err = rmtree.Tree(dir)
	}
	if err != nil {
		return fmt.Errorf("remove the directory of volume %s: %w", v.Name, err)
	}
	n.log.Info("removed a volume", "volume", v.Name)
	return nil
}
