// Command larder-controlplane is a whole Kubernetes control plane in one static program.
//
// It is for development and tests only: no container engine and no download of release binaries is needed, and every
// component is of one known version. The component is chosen by the name the program is called by (a symbolic link
// named kube-apiserver runs the API server) or, when that names none, by the first argument.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components maps the name of a component to what runs it with os.Args as its own arguments; the result is the exit
// code.
var components = map[string]func() int{
	"etcd":                    runEtcd,
	"kube-apiserver":          func() int { return run(apiserver.NewAPIServerCommand) },
	"kube-controller-manager": func() int { return run(controllermanager.NewControllerManagerCommand) },
	"kube-scheduler":          func() int { return run(func() *cobra.Command { return scheduler.NewSchedulerCommand() }) },
	"kube-proxy":              func() int { return run(proxy.NewProxyCommand) },
	"kubelet": func() int {
		return run(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) })
	},
	"kubectl": runKubectl,
}

func main() {
	component, ok := components[filepath.Base(os.Args[0])]
	if !ok && len(os.Args) > 1 {
		if component, ok = components[os.Args[1]]; ok {
			os.Args = os.Args[1:]
		}
	}
	if !ok {
		fmt.Fprintf(os.Stderr, "usage: %s COMPONENT [ARGS]\ncomponents: %s\n", filepath.Base(os.Args[0]), names())
		os.Exit(2)
	}
	os.Exit(component())
}

// run executes a component's own command line.
func run(command func() *cobra.Command) int {
	return cli.Run(command())
}

// runEtcd runs etcd, which reads os.Args itself and does not come back.
func runEtcd() int {
	etcdmain.Main(os.Args)
	return 0
}

// runKubectl runs kubectl the way its own main does: errors of the user are printed without a stack or usage text.
func runKubectl() int {
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
	return 0
}

// names lists the components in a stable order.
func names() string {
	all := make([]string, 0, len(components))
	for name := range components {
		all = append(all, name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
