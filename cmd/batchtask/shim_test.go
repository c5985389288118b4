package main

import (
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/spf13/pflag"
)

// The HTTP front has TLS and serves no namespace but those that are named, unless it is told
// otherwise; what is not enough to start with is told in one line.
func TestShimFlags(t *testing.T) {
	for _, tc := range []struct {
		name, args, environment, want string
	}{
		{"nothing", "", "", "--namespace (or POD_NAMESPACE) is required"},
		{"no namespaces", "--namespace=x", "", "--namespaces: name those to be served"},
		{"as installed", "--namespace=x", "team-a, team-b\nteam-c", ""},
		{"named", "--namespace=x --namespaces=a,b", "", ""},
		{"all", "--namespace=x --all-namespaces", "", ""},
		{"all, and some", "--namespace=x --all-namespaces", "team-a", "give one of them"},
		{"all, as the component says it", "--namespace=x --all-namespaces --namespaces=", "team-a", ""},
		{"plain", "--plain-http --all-namespaces", "", ""},
		{"plain, and files", "--plain-http --all-namespaces --tls-cert-file=a --tls-key-file=b", "", "give one of them"},
		{"files", "--all-namespaces --tls-cert-file=a --tls-key-file=b", "", ""},
		{"half of the files", "--all-namespaces --tls-cert-file=a", "", "give both, or none"},
		{"no failures", "--plain-http --all-namespaces --failure-rate-limit=0", "", "--failure-rate-limit=0: must be positive"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("SHIM_NAMESPACES", tc.environment)
			t.Setenv("POD_NAMESPACE", "")
			opts, flags := &shimOptions{}, pflag.NewFlagSet("", pflag.ContinueOnError)
			opts.bind(flags)
			if err := flags.Parse(strings.Fields(tc.args)); err != nil {
				t.Fatal(err)
			}
			err := opts.validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if tc.name == "as installed" && strings.Join(opts.namespaces, " ") != "team-a team-b team-c" {
				t.Errorf("the namespaces are %q", opts.namespaces)
			}
		})
	}
}

// A namespace that cannot be read keeps the others from being served for a moment only, and
// nobody is served while none can be read.
func TestSyncedOrLate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var told []string
	log := funcr.New(func(_, line string) { told = append(told, line) }, funcr.Options{})
	read := map[string]bool{}
	namespace := func(name string) func() bool { return func() bool { return read[name] } }
	synced := syncedOrLate(log, map[string]func() bool{"a": namespace("a"), "b": namespace("b")}, func() time.Time { return now })
	if synced() {
		t.Error("synced at the start")
	}
	now = now.Add(time.Hour)
	if synced() {
		t.Error("synced, and no namespace was read")
	}
	read["a"] = true
	if first, again := synced(), synced(); !first || !again || len(told) != 1 || !strings.Contains(told[0], `"namespace"="b"`) {
		t.Errorf("one namespace keeps the other from being served, or the log is told %q", told)
	}
	early := syncedOrLate(log, map[string]func() bool{"a": namespace("a"), "b": namespace("b")}, func() time.Time { return now })
	if early() {
		t.Error("nobody waits for a namespace")
	}
	read["b"] = true
	if !early() {
		t.Error("all are read, and it is not synced")
	}
}
