// Package clients runs the whole system with the clients that users of the legacy
// HTTP API have: the official ones for Go (test/clients/go, a module of its own)
// and Node.js (test/clients/node), and the two example requests of CreateTask as
// they are printed. Each of them has an account of its own.
package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	ctrl "sigs.k8s.io/controller-runtime"

	"batchtask.dev/operator/hack/localenv"
)

// awkward is what the clients append to payloads: it holds what one encoding or
// another gets wrong.
const awkward = ` 100% "a=b" & c+d; {} 门 @ é`

func TestMain(m *testing.M) {
	localenv.BecomeChild()
	ctrl.SetLogger(logr.Discard())
	code := m.Run()
	if code == 0 {
		if err := leaks(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left over:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks finds goroutines that are left over. It gives them more time to end than goleak
// does by itself, which is less than half a second.
func leaks() error {
	end := time.Now().Add(30 * time.Second)
	for {
		if err := goleak.Find(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func TestClients(t *testing.T) {
	root := filepath.Join("..", "..")
	assets, err := localenv.FindAssets(root, os.Getenv("KUBEBUILDER_ASSETS"))
	if err != nil {
		t.Fatal(err)
	}
	opts := localenv.Options{
		Root: root, Dir: t.TempDir(), Assets: assets, Program: build(t), Namespace: "examples",
		MQTTAddress: "127.0.0.1:0", ShimAddress: "127.0.0.1:0",
		// The clients make one call after the other, as fast as they can.
		ShimFlags: []string{"--rate-limit=1000", "--rate-burst=1000"},
	}
	err = localenv.Run(t.Context(), opts, func(ctx context.Context, env *localenv.Env) error {
		s := newSuite(ctx, t, env, opts.Program)
		t.Run("examples", s.testExamples)
		t.Run("go", s.testGo)
		t.Run("node", s.testNode)
		if t.Failed() {
			logs(t, env)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// build makes the program as it is shipped.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "batchtask")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path, "batchtask.dev/operator/cmd/batchtask")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building batchtask: %v\n%s", err, output)
	}
	return path
}

func (s *suite) testGo(t *testing.T) {
	a := s.newAccount(t, "go", "GO12345678")
	// Another build of the standard library is avoided where the program's is used.
	output := a.run(t, "go", "go", "test", "-count=1", "-v", "-timeout=5m", "./...")
	if strings.Contains(output, "--- SKIP") {
		t.Errorf("tests were skipped:\n%s", output)
	}
	var want, direct, encoded []string
	for _, method := range []string{"TC3-HMAC-SHA256", "HmacSHA256", "HmacSHA1"} {
		for _, verb := range []string{"POST", "GET"} {
			want = append(want, "go "+method+" "+verb+awkward)
			direct = append(direct, "go direct "+method+" "+verb+awkward)
			encoded = append(encoded, "go direct "+method+" "+verb+awkward+" encoded")
		}
	}
	want = append(want, "go unknowing TC3-HMAC-SHA256 POST"+awkward, "go unknowing HmacSHA1 POST"+awkward)
	a.wantMessages(t, want, "door-1", "door-2")
	a.wantMessages(t, append(encoded, direct...), "door-1")
	a.wantDeltas(t, direct)
	a.wantOthersLeftAlone(t)
}

func (s *suite) testNode(t *testing.T) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		message := program + " is not installed (Debian packages nodejs and npm), this test needs it"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	a := s.newAccount(t, "node", "NODE123456")
	a.run(t, "node", "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	// One file after the other: all have one account, and each counts its Nonces from the time.
	output := a.run(t, "node", "node", "--test", "--test-concurrency=1", "--test-reporter=tap")
	if !strings.Contains(output, "\n# skipped 0\n") {
		t.Errorf("tests were skipped:\n%s", output)
	}
	want := []string{"@door", "@door"}
	direct := []string{}
	for _, way := range []string{"POST sha1", "POST sha256", "GET sha1", "GET sha256"} {
		want = append(want, "node "+way+", as text"+awkward, "node "+way+", as an object"+awkward,
			"node unknowing "+way, "node v3 "+way+awkward)
		direct = append(direct, "node direct "+way+awkward)
	}
	a.wantMessages(t, want, "door-1", "door-2")
	a.wantMessages(t, append(slices.Clone(direct), "@direct", "@direct"), "door-1")
	a.wantDeltas(t, direct)
	a.wantOthersLeftAlone(t)
}

// run runs a program in a folder with the account's environment and returns its
// output. If it fails, the test does, with the output.
func (a *account) run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(a.ctx, 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = dir, 10*time.Second
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "NODE_NO_WARNINGS=1",
		"BATCHTASK_API_URL="+a.apiURL, "BATCHTASK_SECRET_ID="+a.secretID, "BATCHTASK_SECRET_KEY="+a.secretKey,
		"BATCHTASK_PRODUCT_ID="+a.product, "BATCHTASK_CONFLICT_PRODUCT_ID="+conflictID, "BATCHTASK_SLOW_URL="+a.slowURL,
	)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// wantMessages checks that each of these devices has received each of these payloads
// as often as it stands there.
func (a *account) wantMessages(t *testing.T, payloads []string, names ...string) {
	t.Helper()
	want := map[string]int{}
	for _, payload := range payloads {
		want[payload]++
	}
	for _, name := range names {
		eventually(t, "the messages of "+name, func() (bool, string) {
			got := map[string]int{}
			for _, message := range a.fleet.Received(name) {
				if message.Topic == a.product+"/"+name+"/event" {
					got[message.Payload]++
				}
			}
			for payload, times := range want {
				if got[payload] != times {
					return false, fmt.Sprintf("it has received %q %d times, want %d; all: %v", payload, got[payload], times, got)
				}
			}
			return true, ""
		})
	}
}

// wantDeltas checks that door-1 was told, by deltas, each of these values of the field
// that calls about single devices set.
func (a *account) wantDeltas(t *testing.T, values []string) {
	t.Helper()
	eventually(t, "the deltas of door-1", func() (bool, string) {
		var got []string
		for _, message := range a.fleet.Received("door-1") {
			var delta struct {
				Payload struct{ State struct{ Direct string } }
			}
			if strings.HasPrefix(message.Topic, "$shadow/") && json.Unmarshal([]byte(message.Payload), &delta) == nil {
				got = append(got, delta.Payload.State.Direct)
			}
		}
		for _, value := range values {
			if !slices.Contains(got, value) {
				return false, fmt.Sprintf("%q is not among %q", value, got)
			}
		}
		return true, ""
	})
}

// wantOthersLeftAlone checks who has received nothing: the window, and but for what
// went to all doors door-2.
func (a *account) wantOthersLeftAlone(t *testing.T) {
	t.Helper()
	if got := a.fleet.Received("window-1"); len(got) > 0 {
		t.Errorf("window-1 received %q", got)
	}
	for _, message := range a.fleet.Received("door-2") {
		if strings.Contains(message.Payload, "direct") {
			t.Errorf("door-2 received %q", message)
		}
	}
}

// logs shows the ends of the logs of the manager and the shim.
func logs(t *testing.T, env *localenv.Env) {
	t.Helper()
	for _, path := range []string{env.ManagerLog, env.ShimLog} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		t.Logf("end of %s:\n%s", path, content[max(0, len(content)-6000):])
	}
}
