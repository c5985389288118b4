package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

const waitFor = 3 * time.Minute // a loaded machine starts a control plane slowly

var programs struct {
	once           sync.Once
	dir            string
	dev, batchtask string
	err            error
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	var err error
	// The directory of a test would go with that test.
	if programs.dir, err = os.MkdirTemp("", "batchtask-dev-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(programs.dir)
	os.Exit(code)
}

// build makes both programs once, with the flags of the Makefile so that Go's
// build cache serves both.
func build(t *testing.T) (dev, batchtask string) {
	t.Helper()
	programs.once.Do(func() {
		programs.dev, programs.batchtask = filepath.Join(programs.dir, "batchtask-dev"), filepath.Join(programs.dir, "batchtask")
		for _, args := range [][]string{
			{"build", "-trimpath", "-o", programs.dev, "."},
			{"build", "-trimpath", "-o", programs.batchtask, "../../cmd/batchtask"},
		} {
			cmd := exec.Command("go", args...)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if output, err := cmd.CombinedOutput(); err != nil {
				programs.err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, output)
				return
			}
		}
	})
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	return programs.dev, programs.batchtask
}

// prepare returns the program with arguments, not yet started.
func prepare(t *testing.T, dir, subcommand string, args ...string) *exec.Cmd {
	t.Helper()
	dev, batchtask := build(t)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*waitFor)
	t.Cleanup(cancel)
	args = append([]string{subcommand, "--root=../..", "--dir=" + dir, "--program=" + batchtask, "--devices=40"}, args...)
	cmd := exec.CommandContext(ctx, dev, args...)
	cmd.Env = append(os.Environ(), "DEV_MQTT_ADDR=127.0.0.1:0", "DEV_API_ADDR=127.0.0.1:0", "MQTT_URL=", "DATABASE_URL=", "BATCHTASK_NAMESPACE=")
	return cmd
}

func TestDemo(t *testing.T) {
	output, err := prepare(t, t.TempDir(), "demo", "--broker=embedded").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, want := range []string{
		`mochi-mqtt, embedded`,
		`open-doors +█{30} +20/20 +Done`,
		`close-doors +█{30} +19/19 +Done`,
		`door-1 +ABCDE12345/door-1/event\n +close\n`,
		`front-door +\$shadow/operation/result/ABCDE12345/front-door\n +\{"type":"delta",.*"state":\{"state":"open"\}`,
		`back-door +\(nothing: it is not connected`,
		`window-1 +\(nothing: no filter`,
		`reports +█{30} +19/19 +Done`,
		`(?s)→ \$shadow/operation/ABCDE12345/back-door\n +\{"type":"get",[^→]*← \$shadow/operation/result/ABCDE12345/back-door\n +\{"type":"get","result":0,[^→]*"desired":\{"state":"open"\}` +
			// More than once where the answer takes long.
			`([^→]*→ \$shadow/operation/ABCDE12345/back-door\n +\{"type":"update","state":\{"reported":\{"state":"open"\},"desired":null\},"version":1,)+` +
			`[^→]*← \$shadow/operation/result/ABCDE12345/back-door\n +\{"type":"update","result":0,`,
		`back-door +version 2 +desired \(none\) +reported \{"state":"open"\}`,
		`20 devices report that they are open`,
		`POST /v2/index.php\n +Action=CreateTask&taskType=UpdateShadow&deviceNameFilter=door\$&`,
		`answered +\{"taskId":"[0-9a-f]{24}","message":"","codeDesc":"Success","code":0\}\n +documented +\{"taskId":"5ad5aa513332ea4cb86e9ad5",`,
		`open, HTTP +█{30} +20/20 +Done`,
		`close, HTTP +█{30} +19/19 +Done`,
		`every device has the same "close" a second time`,
		`every shadow is one version further`,
		`open-doors: 20 devices matched, 20 succeeded, 20 have acknowledged`,
		`(?s)(  [0-9a-f]{24}  (UpdateShadow|PublishMessage) +3 Done\n){4}  ✓ ListTasks has all 4`,
		`Error from server \(Forbidden\): .*5 active tasks`,
		`403, cause TaskLimitExceeded`,
		`later-1 is cancelled`,
		`\nDone: 40 devices, 4 tasks, 57 messages`,
	} {
		if !regexp.MustCompile(want).Match(output) {
			t.Errorf("the output has no %s", want)
		}
	}
	if bytes.Contains(output, []byte("\x1b")) {
		t.Error("there are escape sequences in output that is not for a terminal")
	}
	if t.Failed() {
		t.Logf("%s", output)
	}
}

func TestDemoFails(t *testing.T) {
	// A "batchtask" that does not know the subcommand manager.
	broken := filepath.Join(t.TempDir(), "batchtask")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho broken manager\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := prepare(t, t.TempDir(), "demo", "--program="+broken)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit status 1", err)
	}
	line := strings.TrimSuffix(complaint.String(), "\n")
	if strings.Contains(line, "\n") || !strings.Contains(line, "manager ended unexpectedly (exit status 7)") || !strings.HasSuffix(line, "broken manager") {
		t.Errorf("it complains %q, want one line that tells of the manager and its log", line)
	}
}

func TestDev(t *testing.T) {
	for _, test := range []struct {
		name       string
		signal     syscall.Signal
		args       []string
		database   bool
		wantExit   int
		wantRemove bool
	}{
		{"interrupted", syscall.SIGINT, []string{"--broker=embedded"}, true, 0, true},
		// With mosquitto as a further child, where it is installed.
		{"killed", syscall.SIGKILL, nil, false, -1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.signal == syscall.SIGKILL && runtime.GOOS != "linux" {
				t.Skip("only Linux ends the children of a process that is killed")
			}
			dir := t.TempDir()
			cmd := prepare(t, dir, "dev", test.args...)
			database := ""
			if test.database {
				database = startPostgres(t)
				cmd.Env = append(cmd.Env, "DATABASE_URL="+database)
			}
			var output bytes.Buffer
			cmd.Stdout, cmd.Stderr = &output, &output
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			env := waitForEnv(t, cmd, filepath.Join(dir, "env"), &output)
			c := checkEnvironment(t, env)
			if database != "" {
				checkDatabase(t, c, env["BATCHTASK_NAMESPACE"])
			}

			second, err := prepare(t, dir, "dev").CombinedOutput()
			if err == nil || !strings.Contains(string(second), fmt.Sprintf("running already in this checkout, as process %d", cmd.Process.Pid)) {
				t.Errorf("a second one: %v: %s", err, second)
			}

			children := childrenOf(t, cmd.Process.Pid)
			if runtime.GOOS == "linux" && len(children) < 5 {
				t.Errorf("children %v, want at least etcd, kube-apiserver, the manager, the shadow service and the shim", children)
			}
			if err := cmd.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != test.wantExit {
				t.Errorf("exit status %d, want %d\n%s", got, test.wantExit, output.String())
			}
			if _, err := os.Stat(filepath.Join(dir, "env")); os.IsNotExist(err) != test.wantRemove {
				t.Errorf("the file env: %v, want it removed: %v", err, test.wantRemove)
			}
			if left := schemas(t, database); len(left) > 0 {
				t.Errorf("schemas %q are left in the database", left)
			}
			deadline := time.After(waitFor)
			for _, pid := range children {
				for alive(pid) {
					select {
					case <-deadline:
						t.Fatalf("process %d is left over", pid)
					case <-time.After(20 * time.Millisecond):
					}
				}
			}
		})
	}
}

// waitForEnv returns the variables that the file exports, once it is there.
func waitForEnv(t *testing.T, cmd *exec.Cmd, file string, output *bytes.Buffer) map[string]string {
	t.Helper()
	deadline := time.Now().Add(waitFor)
	for {
		if _, err := os.Stat(file); err == nil {
			break
		}
		if !alive(cmd.Process.Pid) || time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("it has ended, or written no %s:\n%s", file, output.String())
		}
		<-time.After(50 * time.Millisecond)
	}
	env := map[string]string{}
	for _, name := range []string{
		"KUBECONFIG", "BATCHTASK_NAMESPACE", "MQTT_URL", "BATCHTASK_API_URL", "BATCHTASK_SECRET_ID", "BATCHTASK_SECRET_KEY",
	} {
		value, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", `. "$0" && printf %s "$`+name+`"`, file).Output()
		if err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		env[name] = string(value)
	}
	return env
}

// checkEnvironment uses what the variables name, and returns a client.
func checkEnvironment(t *testing.T, env map[string]string) client.Client {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", env["KUBECONFIG"])
	if err != nil {
		t.Fatal(err)
	}
	scheme := k8sruntime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	var devices v1alpha1.DeviceList
	if err := c.List(t.Context(), &devices, client.InNamespace(env["BATCHTASK_NAMESPACE"])); err != nil || len(devices.Items) != 40 {
		t.Errorf("%d devices in namespace %q, error %v, want 40", len(devices.Items), env["BATCHTASK_NAMESPACE"], err)
	}
	broker, err := url.Parse(env["MQTT_URL"])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", broker.Host)
	if err != nil {
		t.Fatalf("MQTT_URL: %v", err)
	}
	_ = conn.Close()

	api := newLegacyAPI(&localenv.Env{
		APIURL: env["BATCHTASK_API_URL"], SecretID: env["BATCHTASK_SECRET_ID"], SecretKey: env["BATCHTASK_SECRET_KEY"],
	})
	var answer struct{ TaskID string }
	if err := api.call(t.Context(), legacyExamples[0].request, &answer); err != nil || answer.TaskID == "" {
		t.Errorf("a legacy call: task %q, error %v", answer.TaskID, err)
	}
	waitForReport(t, c, client.ObjectKey{Namespace: env["BATCHTASK_NAMESPACE"], Name: "front-door"})
	return c
}

// waitForReport waits until the device has done what the first example desires.
func waitForReport(t *testing.T, c client.Client, device client.ObjectKey) {
	t.Helper()
	for deadline := time.Now().Add(waitFor); ; <-time.After(50 * time.Millisecond) {
		var stored v1alpha1.Device
		err := c.Get(t.Context(), device, &stored)
		if shadow := stored.Status.Shadow; err == nil && shadow != nil && shadow.Reported == openState && shadow.Desired == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("device %s has not reported: error %v, shadow %+v", device.Name, err, stored.Status.Shadow)
		}
	}
}

// childrenOf lists the processes whose parent is pid, on Linux.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	var children []int
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		if child, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && statOf(child)[1] == strconv.Itoa(pid) {
			children = append(children, child)
		}
	}
	return children
}

// alive reports whether the process exists and has not ended.
func alive(pid int) bool {
	if runtime.GOOS != "linux" {
		return syscall.Kill(pid, 0) == nil
	}
	state := statOf(pid)[0]
	return state != "" && state != "Z" && state != "X"
}

// statOf returns the state of a process and its parent; empty if there is none.
func statOf(pid int) [2]string {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) < 2 {
		return [2]string{}
	}
	return [2]string{fields[0], fields[1]}
}
