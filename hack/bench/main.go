// Command bench measures the operator on this machine: a real API server, a real
// broker, the manager as it is shipped. Every figure that has a limit stands
// beside that limit, measured in the same run: machines differ and are noisy,
// ratios less so.
//
// Arguments select cases; without any, all are measured. BENCH=quick in the environment
// measures less of each, in minutes, BENCH=full a million devices in PostgreSQL.
//
// An aim is met, missed or, where it or its limit could not be measured, neither. The exit
// status says nothing of aims: it is 0 once the operator was measured, and 1 where it
// could not be.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"batchtask.dev/operator/hack/localenv"
)

// setup is one run of the environment, and what is measured in it. A manager's peak
// memory says something of one run only, so each has a manager of its own.
type setup struct {
	name         string // to select it by
	managerFlags []string
	shadowFlags  []string                                      // none for no shadow service
	shimFlags    []string                                      // none for no HTTP front
	database     bool                                          // start PostgreSQL
	noManager    bool                                          // the case starts managers itself
	memoryLimit  string                                        // see localenv.Options
	brokerFront  func(context.Context, string) (string, error) // see localenv.Options
	measure      func(context.Context, *localenv.Env) ([]figure, error)
}

func setups(size scale) []setup {
	publish := func(c publishCase) setup {
		c.rounds = size.publishRounds
		return setup{name: "publish", managerFlags: c.flags, measure: c.measure}
	}
	shadowOver := func(store string, database bool, makeDevices func(context.Context, *localenv.Env, []string) error) setup {
		c := shadowCase{store: store, roundTrips: size.shadowTrips, step: size.shadowStep, makeDevices: makeDevices}
		return setup{name: "shadow", shadowFlags: shadowFlags, database: database, measure: c.measure}
	}
	all := []setup{publish(publishCase{devices: 2_000, latencies: size.latencies})}
	if size.publishMany {
		all = append(all, publish(publishCase{devices: 20_000, aim: &aim{ofRatio, atLeast, 0.6}}),
			publish(publishCase{devices: 20_000, aim: &aim{ofRatio, atLeast, 0.6}, flags: []string{"--resend-limit=5000"}}))
	}
	sizes, hostile := &postgresSizes{}, newHostileCase(size.hostilePhase, size.hostileTasks)
	return append(all, []setup{
		{name: "small", measure: func(ctx context.Context, env *localenv.Env) ([]figure, error) {
			return measureSmall(ctx, env, size.smallNamespaces, size.smallRounds)
		}},
		{name: "shim", shimFlags: []string{"--rate-limit=100000", "--rate-burst=100000"}, measure: func(ctx context.Context, env *localenv.Env) ([]figure, error) {
			return measureShim(ctx, env, size.frontRounds, size.frontPairs)
		}},
		shadowOver("Kubernetes store", false, makeDevices),
		shadowOver("PostgreSQL store", true, makeDatabaseDevices),
		{name: "postgres", database: true, measure: sizes.measureBase},
		{name: "postgres", database: true, measure: sizes.measureLarge(size.postgresDevices)},
		{name: "scale", noManager: true, measure: size.many.measure},
		{
			name: "hostile", database: true, shadowFlags: asShipped, shimFlags: asShipped, memoryLimit: hostileMemory,
			brokerFront: hostile.broker.start, measure: hostile.measure,
		},
	}...)
}

func main() {
	localenv.BecomeChild()
	log.SetLogger(logr.Discard()) // else controller-runtime complains
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures the cases of these names, or all, and shows what was measured even if one
// of them fails.
func run(ctx context.Context, only []string) error {
	size, err := readScale()
	if err != nil {
		return err
	}
	chosen, err := choose(setups(size), only)
	if err != nil {
		return err
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	assets, err := localenv.FindAssets(root, os.Getenv("KUBEBUILDER_ASSETS"))
	if err != nil {
		return err
	}
	if err := checkPrograms(chosen); err != nil {
		return err
	}
	path := filepath.Join(root, "bin", "bench.json")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // that of a former run says nothing of this one
		return err
	}
	var figures []figure
	var failed error
	for _, c := range chosen {
		var measured []figure
		measured, failed = c.run(ctx, root, assets)
		figures = append(figures, measured...)
		if failed != nil {
			failed = fmt.Errorf("case %s, and none after it was measured: %w", c.name, failed)
			break
		}
	}
	show(os.Stdout, figures)
	if err := save(path, figures); err != nil {
		return errors.Join(failed, err)
	}
	fmt.Println("\nwritten to", path)
	return failed
}

// run measures one case in an environment of its own.
func (s setup) run(ctx context.Context, root, assets string) (figures []figure, err error) {
	opts := localenv.Options{
		Root: root, Dir: filepath.Join(root, ".dev", "bench"), Assets: assets,
		Program: filepath.Join(root, "bin", "batchtask"), Namespace: "bench", Progress: progress,
		MQTTAddress: "127.0.0.1:0", NoManager: s.noManager, ManagerFlags: s.managerFlags,
		NoShadow: len(s.shadowFlags) == 0, ShadowFlags: s.shadowFlags,
		Database: s.database,
		NoShim:   len(s.shimFlags) == 0, ShimAddress: "127.0.0.1:0", ShimFlags: s.shimFlags,
		BrokerFront: s.brokerFront, MemoryLimit: s.memoryLimit,
	}
	err = localenv.Run(ctx, opts, func(ctx context.Context, env *localenv.Env) (err error) {
		figures, err = s.measure(ctx, env)
		return err
	})
	return figures, err
}

// choose returns the cases of these names, or all.
func choose(all []setup, only []string) ([]setup, error) {
	if len(only) == 0 {
		return all, nil
	}
	var chosen []setup
	unknown := slices.Clone(only)
	var names []string
	for _, s := range all {
		if !slices.Contains(names, s.name) {
			names = append(names, s.name)
		}
		unknown = slices.DeleteFunc(unknown, func(name string) bool { return name == s.name })
		if slices.Contains(only, s.name) {
			chosen = append(chosen, s)
		}
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("there is no case %s; there are %s", strings.Join(unknown, ", "), strings.Join(names, ", "))
	}
	return chosen, nil
}

// checkPrograms tells what is missing before an hour has gone into the other cases.
func checkPrograms(chosen []setup) error {
	if _, err := exec.LookPath("mosquitto"); err != nil {
		return fmt.Errorf("measuring needs mosquitto (apt-get install mosquitto): %w", err)
	}
	for _, c := range chosen {
		if !c.database {
			continue
		}
		if _, err := localenv.FindPostgres(); err != nil {
			return fmt.Errorf("case %s: %w; CASES selects others", c.name, err)
		}
	}
	return nil
}

func progress(text string) { fmt.Fprintln(os.Stderr, "bench:", text) }
