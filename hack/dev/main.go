// Command batchtask-dev shows the operator on one machine: demo runs the two
// examples of the API, as objects and as calls, over simulated devices and exits;
// dev keeps the same environment running.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"batchtask.dev/operator/hack/localenv"
)

// settings are what both subcommands take.
type settings struct {
	root      string
	dir       string
	program   string
	broker    string
	devices   int
	namespace string
}

func main() {
	localenv.BecomeChild()
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())

	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// A second signal does not wait for the end.
	context.AfterFunc(ctx, restore)
	out := newOutput(os.Stdout, term.IsTerminal(int(os.Stdout.Fd())))
	err := command(out).ExecuteContext(ctx)
	switch {
	case err == nil:
		return
	case interrupted(ctx):
		fmt.Fprintln(os.Stderr, "batchtask-dev: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "batchtask-dev:", err)
		os.Exit(1)
	}
}

func command(out *output) *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use:           "batchtask-dev",
		Short:         "Run the operator on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&s.root, "root", ".", "folder of the module")
	flags.StringVar(&s.dir, "dir", "", "folder for logs and the like (default .dev for dev, .dev/demo for demo)")
	flags.StringVar(&s.program, "program", "", "the batchtask program (default bin/batchtask)")
	flags.StringVar(&s.broker, "broker", "", "mosquitto or embedded (default mosquitto where it is installed)")
	flags.IntVar(&s.devices, "devices", devicesFromEnvironment(), "how many devices to simulate, at least 10 (default from DEV_DEVICES, else 1000)")
	root.AddCommand(
		&cobra.Command{
			Use:   "demo",
			Short: "Run the two examples of the API over simulated devices, show what happens, and exit",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return runDemo(cmd.Context(), s, out)
			},
		},
		&cobra.Command{
			Use:   "dev",
			Short: "Keep a local environment running until Ctrl-C",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return runDev(cmd.Context(), s, out)
			},
		},
	)
	return root
}

// devicesFromEnvironment returns DEV_DEVICES; -1, which is refused later, if it
// is not a number.
func devicesFromEnvironment() int {
	text := os.Getenv("DEV_DEVICES")
	if text == "" {
		return 1000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return n
}

// options completes the settings for a subcommand.
func (s *settings) options(dir string, progress func(string)) (localenv.Options, error) {
	if s.devices < minDevices || s.devices > maxDevices {
		return localenv.Options{}, fmt.Errorf("DEV_DEVICES or --devices: must be a number from %d to %d", minDevices, maxDevices)
	}
	assets, err := localenv.FindAssets(s.root, os.Getenv("KUBEBUILDER_ASSETS"))
	if err != nil {
		return localenv.Options{}, err
	}
	if s.dir == "" {
		s.dir = filepath.Join(s.root, dir)
	}
	if s.program == "" {
		s.program = filepath.Join(s.root, "bin", "batchtask")
	}
	if s.namespace = os.Getenv("BATCHTASK_NAMESPACE"); s.namespace == "" {
		s.namespace = "demo"
	}
	return localenv.Options{
		Root: s.root, Dir: s.dir, Assets: assets, Program: s.program, Namespace: s.namespace,
		MQTTURL: os.Getenv("MQTT_URL"), MQTTAddress: os.Getenv("DEV_MQTT_ADDR"), Broker: localenv.BrokerKind(s.broker),
		ShimAddress: os.Getenv("DEV_API_ADDR"),
		Progress:    progress,
	}, nil
}
