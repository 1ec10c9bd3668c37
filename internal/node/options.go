package node

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"k3s9p/internal/hint"
)

// Options are what a user asks for. Empty values mean the default.
type Options struct {
	DataDir     string `json:"dataDir"`
	NodeName    string `json:"nodeName,omitempty"`
	ClusterCIDR string `json:"clusterCIDR,omitempty"`
	ServiceCIDR string `json:"serviceCIDR,omitempty"`
	// AdvertiseAddress is the address of this machine that other nodes reach it at.
	AdvertiseAddress string `json:"advertiseAddress,omitempty"`
	// Joining is the cluster to join; nil brings up one of the node's own, or what the data
	// directory has.
	Joining *Joining `json:"joining,omitempty"`
	// Images is a directory whose image archives are imported.
	Images string `json:"images,omitempty"`
	// Wait is how long the node may take to be Ready.
	Wait time.Duration `json:"wait"`
	// Rootless is one of RootlessAuto, RootlessAlways and RootlessNever.
	Rootless string `json:"rootless,omitempty"`
	// Network is NetworkNone, or empty.
	Network string `json:"network,omitempty"`
	// Services is ServicesProxy, or empty.
	Services string `json:"services,omitempty"`
	// Publish are further ports of this machine, each [ADDRESS:]PORT:NODEPORT[/udp].
	Publish []string `json:"publish,omitempty"`
	// Detach leaves the node running when it is Ready.
	Detach bool `json:"detach,omitempty"`
	// Disable are the AddOns that are left out.
	Disable []string `json:"disable,omitempty"`
	// Further flags of the programs, each name=value or name.
	KubeletArgs           []string `json:"kubeletArgs,omitempty"`
	APIServerArgs         []string `json:"apiserverArgs,omitempty"`
	ControllerManagerArgs []string `json:"controllerManagerArgs,omitempty"`
	SchedulerArgs         []string `json:"schedulerArgs,omitempty"`
	// K3sArgs are further arguments of k3s.
	K3sArgs []string `json:"k3sArgs,omitempty"`
}

// NetworkNone is the choice of --network for a cluster that reaches nothing outside.
const NetworkNone = "none"

// ServicesProxy is the choice of --services for a cluster whose Services a proxy in
// userspace serves also where the kernel could.
const ServicesProxy = "proxy"

// DefaultWait is how long a node may take to be Ready. In gVisor it takes ten
// seconds, on an emulated processor minutes.
const DefaultWait = 2 * time.Minute

func (o *Options) check() error {
	if o.Wait <= 0 {
		return hint.Add(fmt.Errorf("--wait %v leaves the node no time to start", o.Wait), "--wait %v", DefaultWait)
	}
	if o.Rootless = cmp.Or(o.Rootless, RootlessAuto); !slices.Contains([]string{RootlessAuto, RootlessAlways, RootlessNever}, o.Rootless) {
		return hint.Add(fmt.Errorf("--rootless=%s is not known", o.Rootless), "--rootless=%s, --rootless=%s or --rootless=%s", RootlessAuto, RootlessAlways, RootlessNever)
	}
	if o.Network != "" && o.Network != NetworkNone {
		return hint.Add(fmt.Errorf("--network=%s is not known", o.Network), "--network=%s, or nothing", NetworkNone)
	}
	if o.Services != "" && o.Services != ServicesProxy {
		return hint.Add(fmt.Errorf("--services=%s is not known", o.Services), "--services=%s, or nothing", ServicesProxy)
	}
	if _, err := o.publications(); err != nil {
		return err
	}
	if o.Images != "" {
		absolute, err := filepath.Abs(o.Images)
		if err != nil {
			return err
		}
		info, err := os.Stat(absolute)
		if err == nil && !info.IsDir() {
			err = errors.New("it is a file")
		}
		if err != nil {
			return hint.Add(fmt.Errorf("--images %s: %w", o.Images, err), "name a directory with image archives, as docker save writes them")
		}
		o.Images = absolute
	}
	return errors.Join(o.checkAddOns(), Paths{o.DataDir}.check())
}

// nodeName is the one that was asked for, or the machine's.
func (o Options) nodeName() (string, error) {
	name := o.NodeName
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", err
		}
		name = strings.ToLower(host)
	}
	if problems := invalidNodeName(name); problems != "" {
		return "", hint.Add(fmt.Errorf("%q cannot be the name of a node: %s", name, problems), "--node-name NAME")
	}
	return name, nil
}

// flagsOf turns name=value into --name=value.
func flagsOf(args []string) []string {
	var flags []string
	for _, arg := range args {
		flags = append(flags, "--"+strings.TrimLeft(arg, "-"))
	}
	return flags
}

func invalidNodeName(name string) string {
	return strings.Join(validation.IsDNS1123Subdomain(name), "; ")
}
