package blocker

import (
	"context"
	"errors"
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
	Check: func(_ context.Context, h *Host) (Answer, string) {
		dir := h.Settings.Containerd.Plugins
		if _, err := os.Stat(dir); dir == h.Plugins && errors.Is(err, os.ErrNotExist) {
			return Unclear, dir + " is not unpacked yet"
		}
		for _, name := range []string{h.Settings.Network.Plugin, "host-local", "loopback"} {
			if err := askPlugin(filepath.Join(dir, name)); err != nil {
				return seen(err, "")
			}
		}
		return Fine, "the plugins in " + dir + " answer"
	},
	Decide: func(_ context.Context, d *decision) {
		d.settings().Containerd.Plugins = d.h.Plugins
		d.choose("CNI plugins", "those in "+d.h.Plugins)
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
