// Command bench measures the operator on this machine: a real API server, a real
// broker, the manager as it is shipped. Every figure that has a limit stands
// beside that limit, measured in the same run: machines differ and are noisy,
// ratios less so.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"batchtask.dev/operator/hack/localenv"
)

// figure is one line of the result.
type figure struct {
	Case  string  `json:"case"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Limit is what was measured beside it, by LimitIs; 0 where there is none.
	Limit   float64 `json:"limit,omitempty"`
	LimitIs string  `json:"limitIs,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"`
	Aim     string  `json:"aim,omitempty"`
	// NotMeasured says why Value or Limit is missing. Such a figure has not reached its
	// aim, whatever that is.
	NotMeasured string `json:"notMeasured,omitempty"`
}

// setup is one run of the environment, and what is measured in it. A manager's peak
// memory says something of one run only, so each has a manager of its own.
type setup struct {
	name         string // to select it by
	managerFlags []string
	shadowFlags  []string // none for no shadow service
	shimFlags    []string // none for no HTTP front
	database     bool     // start PostgreSQL
	measure      func(context.Context, *localenv.Env) ([]figure, error)
}

func setups() []setup {
	publish := func(devices int, latency bool, aim string, flags ...string) setup {
		c := publishCase{devices: devices, flags: flags, latency: latency, aim: aim}
		return setup{name: "publish", managerFlags: flags, measure: c.measure}
	}
	return []setup{
		publish(2_000, true, ""),
		publish(20_000, false, ">= 0.6"),
		publish(20_000, false, ">= 0.6", "--resend-limit=5000"),
		{name: "shim", shimFlags: []string{"--rate-limit=100000", "--rate-burst=100000"}, measure: measureShim},
		{name: "shadow", shadowFlags: shadowFlags, measure: measureShadow},
		{name: "postgres", database: true, measure: measurePostgres},
	}
}

func main() {
	localenv.BecomeChild()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures the cases of these names, or all.
func run(ctx context.Context, only []string) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	assets, err := localenv.FindAssets(root, os.Getenv("KUBEBUILDER_ASSETS"))
	if err != nil {
		return err
	}
	if err := checkPrograms(only); err != nil {
		return err
	}
	var figures []figure
	for _, c := range setups() {
		if !c.chosen(only) {
			continue
		}
		opts := localenv.Options{
			Root: root, Dir: filepath.Join(root, ".dev", "bench"), Assets: assets,
			Program: filepath.Join(root, "bin", "batchtask"), Namespace: "bench", Progress: progress,
			MQTTAddress: "127.0.0.1:0", ManagerFlags: c.managerFlags,
			NoShadow: len(c.shadowFlags) == 0, ShadowFlags: c.shadowFlags,
			Database: c.database,
			NoShim:   len(c.shimFlags) == 0, ShimAddress: "127.0.0.1:0", ShimFlags: c.shimFlags,
		}
		err := localenv.Run(ctx, opts, func(ctx context.Context, env *localenv.Env) error {
			measured, err := c.measure(ctx, env)
			figures = append(figures, measured...)
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(figures) == 0 {
		return fmt.Errorf("there is no case %s; there are publish, shim, shadow and postgres", strings.Join(only, ", "))
	}
	show(figures)
	return save(filepath.Join(root, "bin", "bench.json"), figures)
}

func (s setup) chosen(only []string) bool { return len(only) == 0 || slices.Contains(only, s.name) }

// checkPrograms tells what is missing before an hour has gone into the other cases.
func checkPrograms(only []string) error {
	if _, err := exec.LookPath("mosquitto"); err != nil {
		return fmt.Errorf("measuring needs mosquitto (apt-get install mosquitto): %w", err)
	}
	for _, c := range setups() {
		if !c.database || !c.chosen(only) {
			continue
		}
		if _, err := localenv.FindPostgres(); err != nil {
			return fmt.Errorf("case %s: %w; CASES selects others", c.name, err)
		}
		if _, err := postgresDevices(); err != nil {
			return fmt.Errorf("case %s: %w", c.name, err)
		}
	}
	return nil
}

func progress(text string) { fmt.Fprintln(os.Stderr, "bench:", text) }

func show(figures []figure) {
	fmt.Printf("\n%-72s %12s  %-14s %12s  %7s  %s\n", "case", "measured", "unit", "limit", "ratio", "aim")
	for _, f := range figures {
		limit, ratio := "-", "-"
		if f.Limit > 0 {
			limit, ratio = fmt.Sprintf("%.1f", f.Limit), fmt.Sprintf("%.2f", f.Ratio)
		}
		if f.NotMeasured != "" {
			f.Aim += " (NOT MEASURED: " + f.NotMeasured + ")"
		}
		fmt.Printf("%-72s %12.1f  %-14s %12s  %7s  %s\n", f.Case, f.Value, f.Unit, limit, ratio, f.Aim)
	}
}

func save(path string, figures []figure) error {
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return err
	}
	fmt.Println("\nwritten to", path)
	return nil
}
