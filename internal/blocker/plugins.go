package blocker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

var cniPlugins = Blocker{
	ID:      "cni-plugins",
	Title:   "no CNI plugins",
	Symptom: "failed to find plugin…in path",
	Source:  "containernetworking/cni pkg/invoke/find.go",
	Remedy:  Setting,
	Action:  "containerd looks for the plugins in the directory that they were unpacked to",
	Check: func(_ context.Context, h *Host) (Answer, string) {
		dir := h.Settings.Containerd.Plugins
		for _, name := range []string{h.Settings.Network.Plugin, "host-local", "loopback"} {
			if err := askPlugin(filepath.Join(dir, name)); err != nil {
				return seen(err, "")
			}
		}
		return Fine, "the plugins in " + dir + " answer"
	},
	Fix: func(h *Host) error {
		for _, name := range []string{h.Settings.Network.Plugin, "host-local", "loopback"} {
			if err := askPlugin(filepath.Join(h.Plugins, name)); err != nil {
				return err
			}
		}
		h.Settings.Containerd.Plugins = h.Plugins
		return nil
	},
}

// askPlugin asks a plugin for the versions of the protocol that it speaks (CNI
// specification, VERSION).
func askPlugin(path string) error {
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=VERSION")
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
	output, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ask the CNI plugin %s for its version: %w", path, err)
	}
	if !strings.Contains(string(output), "supportedVersions") {
		return fmt.Errorf("%s does not answer as a CNI plugin: %.80q", path, output)
	}
	return nil
}
