package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/klog/v2"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controllermanageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	metricsserver "sigs.k8s.io/metrics-server/cmd/metrics-server/app/options"

	"k3s9p/build/kubernetes/loopback"
)

const controlPlaneUsage = `usage: kube-control-plane kube-apiserver FLAGS -- kube-controller-manager FLAGS -- kube-scheduler FLAGS [-- metrics-server FLAGS]`

// controlPlanePrograms are those of the process; it can do without the last.
var controlPlanePrograms = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "metrics-server"}

// controlPlane is kube-apiserver, kube-controller-manager and kube-scheduler in one
// process, as in k3s: they share what each of them would otherwise have of its own,
// a runtime, the registered types, the pages of the executable that relocations and
// a sandbox keep from being shared. It ends when one of them does.
//
// Upstream's commands cannot be run beside each other: each sets up the signals of
// the process (k8s.io/apiserver/pkg/server, SetupSignalContext panics when called
// twice). What they call is exported, and called here in their order.
type controlPlane struct {
	apiserver  *apiserveroptions.ServerRunOptions
	controller *controllermanageroptions.KubeControllerManagerOptions
	scheduler  *scheduleroptions.Options
	metrics    *metricsserver.Options // nil for none
}

// runControlPlane is the body of the program kube-control-plane.
func runControlPlane() {
	defer logs.FlushLogs()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := newControlPlane(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		os.Exit(1)
	}
	if err := c.run(ctx); err != nil {
		klog.ErrorS(err, "the control plane ended")
		logs.FlushLogs()
		os.Exit(1)
	}
}

// newControlPlane reads the arguments and sets what is one for the whole process.
func newControlPlane(args []string) (*controlPlane, error) {
	flags, err := flagsByProgram(args)
	if err != nil {
		return nil, err
	}
	c := &controlPlane{apiserver: apiserveroptions.NewServerRunOptions(), scheduler: scheduleroptions.NewOptions()}
	if c.controller, err = controllermanageroptions.NewKubeControllerManagerOptions(); err != nil {
		return nil, err
	}
	controllerFlags := c.controller.Flags(controllermanager.KnownControllers(), controllermanager.ControllersDisabledByDefault(), controllermanager.ControllerAliases())
	c.controller.ParsedFlags = &controllerFlags
	if err := errors.Join(
		parse("kube-apiserver", c.apiserver.Flags(), flags),
		parse("kube-controller-manager", controllerFlags, flags),
		parse("kube-scheduler", *c.scheduler.Flags, flags),
	); err != nil {
		return nil, err
	}
	if _, given := flags["metrics-server"]; given {
		c.metrics = metricsserver.NewOptions()
		if err := parse("metrics-server", c.metrics.Flags(), flags); err != nil {
			return nil, err
		}
	}
	// One registry of feature gates and versions, and one log: those of the apiserver.
	if err := c.apiserver.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // as upstream's programs do
	logs.InitLogs()
	gates := c.apiserver.GenericServerRunOptions.ComponentGlobalsRegistry.FeatureGateFor("kube")
	return c, logsapi.ValidateAndApply(c.apiserver.Logs, gates)
}

// flagsByProgram splits the arguments at "--": each part is a program's name and its
// flags.
func flagsByProgram(args []string) (map[string][]string, error) {
	flags := make(map[string][]string)
	for _, part := range split(args) {
		if len(part) == 0 || strings.HasPrefix(part[0], "-") {
			return nil, errors.New("a program's name is missing; " + controlPlaneUsage)
		}
		if !slices.Contains(controlPlanePrograms, part[0]) {
			return nil, fmt.Errorf("%s is no program of the control plane; %s", part[0], controlPlaneUsage)
		}
		flags[part[0]] = part[1:]
	}
	for _, name := range controlPlanePrograms[:3] {
		if _, given := flags[name]; !given {
			return nil, fmt.Errorf("%s is missing; %s", name, controlPlaneUsage)
		}
	}
	return flags, nil
}

// parse sets the options of a program.
func parse(name string, sets cliflag.NamedFlagSets, flags map[string][]string) error {
	all := pflag.NewFlagSet(name, pflag.ContinueOnError)
	all.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, set := range sets.FlagSets {
		all.AddFlagSet(set)
	}
	all.Usage = func() {}
	if err := all.Parse(flags[name]); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if all.NArg() > 0 {
		return fmt.Errorf("%s does not take any arguments, got %q", name, all.Args())
	}
	return nil
}

// settled is how long after the start the garbage of it is given back to the kernel.
const settled = 15 * time.Second

// idleGCPercent is the part by which the heap may grow between collections from then
// on: the live objects are those of caches, and a node in a sandbox has little to do.
const idleGCPercent = 50

// run runs the control plane until ctx ends or one of its programs does. The
// apiserver is the last one to go: the others still write through it.
func (c *controlPlane) run(ctx context.Context) error {
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	controlling, stopControlling := context.WithCancel(ctx)
	defer stopControlling()
	served := start(stopControlling, "kube-apiserver", func() error { return c.runAPIServer(serving) })
	ready, err := c.apiserverReady(controlling)
	if ready {
		controlled := start(stopControlling, "kube-controller-manager", func() error { return c.runControllerManager(controlling) })
		scheduled := start(stopControlling, "kube-scheduler", func() error { return c.runScheduler(controlling) })
		if c.metrics != nil {
			go runMetricsServer(controlling, c.metrics)
		}
		time.AfterFunc(settled, settle)
		err = errors.Join(<-controlled, <-scheduled)
	}
	stopServing()
	return errors.Join(err, <-served)
}

// settle ends the time of the start, which takes three times the memory that it takes
// to run: the descriptions of all APIs are made and merged.
func settle() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(idleGCPercent)
	}
	debug.FreeOSMemory()
}

// start runs a program, and tells the others to end when it is over.
func start(stopOthers context.CancelFunc, name string, program func() error) <-chan error {
	ended := make(chan error, 1)
	go func() {
		defer stopOthers()
		err := program()
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		ended <- err
	}()
	return ended
}

// runAPIServer is upstream's apiserver.Run, and sets in between how it reaches itself.
func (c *controlPlane) runAPIServer(ctx context.Context) error {
	dial, err := listen(c.apiserver.SecureServing.SecureServingOptions)
	if err != nil {
		return err
	}
	options, err := c.apiserver.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := options.Validate(); len(errs) > 0 {
		return errors.Join(errs...)
	}
	config, err := apiserver.NewConfig(options)
	if err != nil {
		return err
	}
	// Of the apiserver's clients of itself this is for those that are made from now on; in a
	// new cluster it is they who ask most.
	config.KubeAPIs.ControlPlane.Generic.LoopbackClientConfig.Dial = dial
	completed, err := config.Complete()
	if err != nil {
		return err
	}
	server, err := apiserver.CreateServerChain(completed)
	if err != nil {
		return err
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return err
	}
	return prepared.Run(ctx)
}

// listen opens the port of the apiserver, and returns how this process reaches it without
// one. With the flags by which ports are shared the apiserver opens it itself.
func listen(s *genericoptions.SecureServingOptions) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	if s.PermitPortSharing || s.PermitAddressSharing {
		return nil, nil
	}
	network, _, err := genericoptions.CreateListener(s.BindNetwork, net.JoinHostPort(s.BindAddress.String(), strconv.Itoa(s.BindPort)), net.ListenConfig{})
	if err != nil {
		return nil, fmt.Errorf("open the port of the apiserver: %w", err)
	}
	l := loopback.New(network)
	s.Listener = l
	return l.DialContext, nil
}

func (c *controlPlane) runControllerManager(ctx context.Context) error {
	// As upstream: what is to happen at the end is not to be cut off by it.
	config, err := c.controller.Config(context.WithoutCancel(ctx), controllermanager.KnownControllers(), controllermanager.ControllersDisabledByDefault(), controllermanager.ControllerAliases())
	if err != nil {
		return err
	}
	return controllermanager.Run(ctx, config.Complete())
}

func (c *controlPlane) runScheduler(ctx context.Context) error {
	config, instance, err := scheduler.Setup(ctx, c.scheduler)
	if err != nil {
		return err
	}
	err = scheduler.Run(ctx, config, instance)
	if ctx.Err() != nil {
		return nil // it was told to end, and says "finished without leader elect"
	}
	return err
}

// apiserverReady waits until the apiserver is ready. If ctx ends before, it is not.
func (c *controlPlane) apiserverReady(ctx context.Context) (bool, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.controller.Generic.ClientConnection.Kubeconfig)
	if err != nil {
		return false, err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return false, err
	}
	client.Timeout = time.Second
	for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		answer, err := client.Get(config.Host + "/readyz")
		if err != nil {
			continue
		}
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			return true, nil
		}
	}
	return false, nil
}
