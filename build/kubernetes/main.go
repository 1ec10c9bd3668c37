// Command kube is every Kubernetes program of the node in one file: one link,
// one copy of the shared code on disk, as k3s does it. The program is chosen by
// the name that it is started under (a link named kubelet) or by its first
// argument (kube kubelet …).
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata" // time zones of CronJobs, as upstream's apiserver and controller-manager

	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's credential plugins
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubeadmcmd "k8s.io/kubernetes/cmd/kubeadm/app/cmd"
	kubeadmerrors "k8s.io/kubernetes/cmd/kubeadm/app/util/errors"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// programs holds the body of each upstream main function. A command is only
// constructed when it is the one asked for: construction registers feature
// gates and metrics in process-wide registries.
var programs = map[string]func(){
	"kube-apiserver":          func() { os.Exit(cli.Run(apiserver.NewAPIServerCommand())) },
	"kube-controller-manager": func() { os.Exit(cli.Run(controllermanager.NewControllerManagerCommand())) },
	"kube-proxy":              func() { os.Exit(cli.Run(proxy.NewProxyCommand())) },
	"kube-scheduler":          func() { os.Exit(cli.Run(scheduler.NewSchedulerCommand())) },
	"kube-control-plane":      runControlPlane,
	"kubeadm":                 runKubeadm,
	"kubectl":                 runKubectl,
	"kubelet":                 func() { os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background()))) },
}

// runKubectl sets the log level before the command exists, as upstream does:
// plugins and .kuberc are handled while it is constructed.
func runKubectl() {
	logs.GlogSetter(cmd.GetLogVerbosity(os.Args)) //nolint:errcheck // as upstream: a bad level is reported by the flag itself
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}

// runKubeadm runs several commands of kubeadm if "--" separates them: to start a program of
// this size takes longer than most of them.
func runKubeadm() {
	commands := split(os.Args[1:])
	if len(commands) < 2 {
		kubeadmerrors.HandleError(kubeadm.Run())
		return
	}
	for _, args := range commands {
		command := kubeadmcmd.NewKubeadmCommand(os.Stdin, os.Stdout, os.Stderr)
		command.SetArgs(args)
		kubeadmerrors.HandleError(command.Execute()) // ends the program if there is one
	}
}

// split splits arguments at "--".
func split(args []string) (parts [][]string) {
	for len(args) > 0 {
		part := args
		if end := slices.Index(args, "--"); end >= 0 {
			part, args = args[:end], args[end+1:]
		} else {
			args = nil
		}
		parts = append(parts, part)
	}
	return parts
}

func main() {
	if run, ok := programs[filepath.Base(os.Args[0])]; ok {
		run()
		return
	}
	if len(os.Args) > 1 {
		if run, ok := programs[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			run()
			return
		}
	}
	names := make([]string, 0, len(programs))
	for name := range programs {
		names = append(names, name)
	}
	slices.Sort(names)
	asked := "no program named"
	if len(os.Args) > 1 {
		asked = fmt.Sprintf("no program %q", os.Args[1])
	}
	fmt.Fprintf(os.Stderr, "kube: %s\nusage: kube PROGRAM [ARGUMENTS], or a link with the program's name\nprograms: %s\n",
		asked, strings.Join(names, " "))
	os.Exit(2)
}
