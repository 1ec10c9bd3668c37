package node

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k3s9p/internal/manifest"
)

// Manifests is the directory of manifests that the cluster has what they say.
func (p Paths) Manifests() string { return p.at("manifests") }

func (n *Node) openManifests() (err error) {
	if err := os.MkdirAll(filepath.Dir(n.paths.applied()), 0o700); err != nil {
		return err
	}
	n.manifests, err = manifest.Open(n.paths.Manifests(), n.paths.applied(), manifest.Cluster{
		Request: n.client.request,
		Missing: func(err error) bool { return answered(err, http.StatusNotFound) },
		Manager: "k3s9p",
	})
	return err
}

// followManifests keeps the cluster as the manifests say, until ctx ends. On 9p nothing
// tells of a change, so it looks.
func (n *Node) followManifests(ctx context.Context) {
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	for {
		n.syncManifests(ctx)
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// syncManifests says in the log and in the state what is new about the manifests.
func (n *Node) syncManifests(ctx context.Context) {
	files, err := n.manifests.Sync(ctx)
	if ctx.Err() != nil {
		return
	}
	problem := ""
	if err != nil {
		if problem = err.Error(); problem != n.manifestProblem {
			n.log.Warn("the cluster is not as the manifests say", "error", err)
		}
	}
	n.manifestProblem = problem
	if slices.Equal(files, n.state.Manifests) {
		return
	}
	for _, file := range files {
		switch {
		case slices.Contains(n.state.Manifests, file):
		case file.Error != "":
			n.log.Warn("a manifest is not applied", "file", file.Name, "error", file.Error)
		default:
			n.log.Info("applied a manifest", "file", file.Name, "objects", file.Objects)
		}
	}
	n.note(func(s *State) { s.Manifests = files })
}
