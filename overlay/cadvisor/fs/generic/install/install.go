//go:build linux

// Package install registers the plugins of package generic.
package install

import (
	"k8s.io/klog/v2"

	"github.com/google/cadvisor/fs"
	"github.com/google/cadvisor/fs/generic"
)

func init() {
	for _, plugin := range []fs.FsPlugin{generic.New9PPlugin(), generic.NewFallbackPlugin()} {
		if err := fs.RegisterPlugin(plugin.Name(), plugin); err != nil {
			klog.Fatalf("Failed to register %s fs plugin: %v", plugin.Name(), err)
		}
	}
}
