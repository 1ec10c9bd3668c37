package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"
)

// rendered are the three files of some settings, by program.
func rendered(t *testing.T, s Settings) map[string]map[string]any {
	t.Helper()
	files := make(map[string]map[string]any)
	for name, f := range map[string]struct {
		render func() ([]byte, error)
		parse  func([]byte, any) error
	}{
		"kubelet":    {s.KubeletConfig, func(data []byte, v any) error { return yaml.UnmarshalStrict(data, v) }},
		"containerd": {s.ContainerdConfig, toml.Unmarshal},
		"network":    {s.Conflist, json.Unmarshal},
	} {
		data, err := f.render()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var content map[string]any
		if err := f.parse(data, &content); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, data)
		}
		files[name] = content
	}
	return files
}

// Each choice reaches the file of its program, and no other file.
func TestEachChoice(t *testing.T) {
	type object = map[string]any
	for name, c := range map[string]struct {
		program string
		choose  func(*Settings)
		path    []string // of the value in the file
		want    any
	}{
		"cgroup v1":     {"kubelet", func(s *Settings) { s.Kubelet.AllowCgroupV1 = true }, []string{"failCgroupV1"}, false},
		"a shared disk": {"kubelet", func(s *Settings) { s.Kubelet.ForeignDisk = true }, []string{"evictionHard", "nodefs.available"}, "500Mi"},
		"no image GC":   {"kubelet", func(s *Settings) { s.Kubelet.ForeignDisk = true }, []string{"imageGCHighThresholdPercent"}, 100.0},
		"clients":       {"kubelet", func(s *Settings) { s.Kubelet.ClientCA = "/pki/ca.crt" }, []string{"authentication", "x509", "clientCAFile"}, "/pki/ca.crt"},
		"nobody":        {"kubelet", func(s *Settings) { s.Kubelet.ClientCA = "/pki/ca.crt" }, []string{"authentication", "anonymous", "enabled"}, false},
		"DNS":           {"kubelet", func(s *Settings) { s.Kubelet.DNS = "10.43.0.10" }, []string{"clusterDNS"}, []any{"10.43.0.10"}},
		"snapshotter": {"containerd", func(s *Settings) { s.Containerd.Snapshotter = "native" },
			[]string{"plugins", "io.containerd.cri.v1.images", "snapshotter"}, "native"},
		"no other snapshotter": {"containerd", func(s *Settings) { s.Containerd.Snapshotter = "native" },
			[]string{"disabled_plugins"}, []any{"io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.erofs"}},
		"OOM scores": {"containerd", func(s *Settings) { s.Containerd.RestrictOOMScore = true },
			[]string{"plugins", "io.containerd.cri.v1.runtime", "restrict_oom_score_adj"}, true},
		"unprivileged ports": {"containerd", func(s *Settings) { s.Containerd.UnprivilegedPorts = false },
			[]string{"plugins", "io.containerd.cri.v1.runtime", "enable_unprivileged_ports"}, false},
		"plugins": {"containerd", func(s *Settings) { s.Containerd.Plugins = "/cni" },
			[]string{"plugins", "io.containerd.cri.v1.runtime", "cni", "bin_dirs"}, []any{"/cni"}},
	} {
		s := Default()
		c.choose(&s)
		before, after := rendered(t, Default()), rendered(t, s)
		var got any = after[c.program]
		for _, key := range c.path {
			got = got.(object)[key]
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %v is not as it should be:\n%s", name, c.path, diff)
		}
		for program := range before {
			if same := cmp.Equal(before[program], after[program]); same == (program == c.program) {
				t.Errorf("%s: the file of %s is the same: %v", name, program, same)
			}
		}
	}
}

// Where pods leave the node is no business of the plugin.
func TestConflist(t *testing.T) {
	for plugin, c := range map[string]struct{ mtu, bridge any }{"bridge": {65535.0, "cni0"}, "ptp": {65535.0, nil}} {
		s := Default()
		s.Network.Plugin, s.Network.MTU = plugin, 65535
		got := rendered(t, s)["network"]["plugins"].([]any)[0].(map[string]any)
		if got["type"] != plugin || got["ipMasq"] != false || got["mtu"] != c.mtu || got["bridge"] != c.bridge {
			t.Errorf("%s: %v", plugin, got)
		}
	}
	s := Default()
	s.Network.Plugin = "macvlan"
	if data, err := s.Conflist(); err == nil {
		t.Errorf("macvlan gives %s", data)
	}
}

// Write replaces files: containerd does not see one that is rewritten in place.
func TestWriteReplaces(t *testing.T) {
	dir := t.TempDir()
	s := Default()
	s.Containerd.Networks = filepath.Join(dir, "net.d")
	first, err := s.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first.Network)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(dir); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(first.Network)
	if err != nil || os.SameFile(before, after) || after.Mode().Perm() != 0o600 {
		t.Errorf("the file was rewritten in place, or is for others: %v, %v", after, err)
	}
}
