package api_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

const root = "../.."

// kubectl runs the kubectl that stands beside the API server.
func kubectl(t *testing.T, env *testenv.Env, args ...string) string {
	t.Helper()
	program := filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl")
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		found, err := filepath.Glob(filepath.Join(root, "bin", "controlplane", "*", "kubectl"))
		if err != nil || len(found) == 0 {
			t.Fatalf("there is no kubectl beside the API server: %v", err)
		}
		program = found[len(found)-1]
	}
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(config, env.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), program, append([]string{"--kubeconfig", config, "--cache-dir", t.TempDir()}, args...)...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// paths returns the paths of all fields below a schema, and those of them that
// have no description.
func paths(at string, schema map[string]any) (all, silent []string) {
	properties, _ := schema["properties"].(map[string]any)
	if items, ok := schema["items"].(map[string]any); ok {
		properties, _ = items["properties"].(map[string]any)
	}
	for name, value := range properties {
		field := value.(map[string]any)
		path := at + "." + name
		all = append(all, path)
		if text, _ := field["description"].(string); strings.TrimSpace(text) == "" {
			silent = append(silent, path)
		}
		below, silentBelow := paths(path, field)
		all, silent = append(all, below...), append(silent, silentBelow...)
	}
	return all, silent
}

// published waits until the API server tells the schemas of all kinds: it does so a
// moment after it serves them.
func published(t *testing.T, env *testenv.Env) {
	t.Helper()
	c := restClient(t, env)
	var missing []string
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		var text []byte
		text, last = c.Get().AbsPath("/openapi/v3/apis", v1alpha1.GroupVersion.String()).DoRaw(ctx)
		missing = slices.DeleteFunc([]string{"BatchTask", "Device", "Product", "TaskQuota"}, func(kind string) bool {
			return strings.Contains(string(text), `"kind":"`+kind+`"`)
		})
		return len(missing) == 0, nil
	})
	if err != nil {
		t.Fatalf("the schemas of %v are not published: %v, %v", missing, err, last)
	}
}

func TestExplain(t *testing.T) {
	env := testenv.Start(t)
	published(t, env)
	files, err := filepath.Glob(filepath.Join(root, "config", "crd", "bases", "*.yaml"))
	if err != nil || len(files) != 5 {
		t.Fatalf("the CRDs are %v (%v), want five", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Names    struct{ Plural string }
				Versions []struct {
					Schema struct{ OpenAPIV3Schema map[string]any }
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		plural := crd.Spec.Names.Plural
		t.Run(plural, func(t *testing.T) {
			all, silent := paths(plural, crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
			silent = slices.DeleteFunc(silent, func(path string) bool { return path == plural+".metadata" }) // the API server's own
			if len(silent) > 0 {
				t.Errorf("fields without a description: %v", silent)
			}
			// What users see, of the whole tree at once and of one field in depth.
			tree := kubectl(t, env, "explain", plural, "--recursive")
			for _, path := range all {
				if name := path[strings.LastIndex(path, ".")+1:]; !strings.Contains(tree, name+"\t") {
					t.Errorf("kubectl explain does not show %s", path)
				}
			}
			one := kubectl(t, env, "explain", plural+".spec")
			if strings.Contains(one, "<empty>") || strings.Contains(one, "<no description>") {
				t.Errorf("a field of spec has no description:\n%s", one)
			}
		})
	}
	got := kubectl(t, env, "explain", "bt.spec.maxExecutionTimeInSeconds")
	if !strings.Contains(strings.Join(strings.Fields(got), " "), "maxExecutionTimeInSeconds is how long the task may run, in seconds, counted from its start.") {
		t.Errorf("kubectl explain bt.spec.maxExecutionTimeInSeconds says:\n%s", got)
	}
}

// restClient makes a client for what is no object.
func restClient(t *testing.T, env *testenv.Env) rest.Interface {
	t.Helper()
	config := rest.CopyConfig(env.Config)
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	config.APIPath, config.GroupVersion = "/apis", &v1alpha1.GroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(testenv.Scheme()).WithoutConversion()
	c, err := rest.RESTClientForConfigAndClient(config, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// table asks the API server for what kubectl get shows.
func table(t *testing.T, env *testenv.Env, plural, namespace string) *metav1.Table {
	t.Helper()
	text, err := restClient(t, env).Get().Namespace(namespace).Resource(plural).
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shown := &metav1.Table{}
	if err := json.Unmarshal(text, shown); err != nil {
		t.Fatal(err)
	}
	return shown
}

func TestColumns(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	task := testobj.BatchTask("task").In(namespace).Publish("event", "close").Filter("door$").Obj()
	p := testobj.Product("product").In(namespace).Obj()
	device := testobj.Device("device").In(namespace).Disabled().Obj()
	quota := testobj.TaskQuota(namespace).Obj()
	for _, o := range []client.Object{task, p, device, quota} {
		if err := env.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	ahead := metav1.NewTime(time.Date(2099, 3, 1, 12, 0, 0, 0, time.UTC))
	task.Status.Phase, task.Status.Percent, task.Status.ScheduleTime = v1alpha1.TaskPhaseProcessing, 40, &ahead
	task.Status.Devices = &v1alpha1.DeviceCounts{Matched: 10, Succeeded: 4, Failed: 1, Acknowledged: 2}
	p.Status.Conditions, p.Status.DeviceCount = testobj.Product("").Ready(metav1.ConditionFalse, "ProductIDConflict").Obj().Status.Conditions, ptr.To[int64](7)
	device.Status.Shadow = &v1alpha1.DeviceShadow{Version: 3, Desired: `{"a":1}`, Reported: `{"a":2}`}
	quota.Status = testobj.TaskQuota("").Slot("uid", "task", true).Obj().Status
	for _, o := range []client.Object{task, p, device, quota} {
		if err := env.Client.Status().Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	type column struct {
		Name  string
		Wide  bool
		Value any
	}
	for _, tc := range []struct {
		plural string
		want   []column // without Name and the ages
	}{
		{"batchtasks", []column{
			{"Type", false, "PublishMessage"},
			{"Product", false, "ABCDE12345"},
			{"Phase", false, "Processing"},
			{"Matched", false, 10.0},
			{"Succeeded", false, 4.0},
			{"Failed", false, 1.0},
			{"Percent", false, 40.0},
			{"Acknowledged", true, 2.0},
			{"Scheduled", true, "2099-03-01T12:00:00Z"}, // kubectl shows how long ago a date was, and of one to come nothing
			{"Filter", true, "door$"},
		}},
		{"products", []column{
			{"Product", false, "ABCDE12345"},
			{"Fleet", false, "Kubernetes"},
			{"Devices", false, 7.0},
			{"Ready", false, "False"},
			{"Reason", false, "ProductIDConflict"},
		}},
		{"devices", []column{
			{"Product", false, "ABCDE12345"},
			{"Device", false, "device"},
			{"Disabled", false, true},
			{"Version", false, 3.0},
			{"Desired", true, `{"a":1}`},
			{"Reported", true, `{"a":2}`},
		}},
		{"taskquotas", []column{{"Limit", false, 5.0}, {"Active", false, 1.0}}},
	} {
		t.Run(tc.plural, func(t *testing.T) {
			shown := table(t, env, tc.plural, namespace)
			var got []column
			var ages []string
			for i, c := range shown.ColumnDefinitions {
				switch c.Name {
				case "Name":
				case "Age", "Completed":
					ages = append(ages, c.Name)
				default:
					got = append(got, column{c.Name, c.Priority > 0, shown.Rows[0].Cells[i]})
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			wantAges := []string{"Age"}
			if tc.plural == "batchtasks" {
				wantAges = []string{"Age", "Completed"}
			}
			if diff := cmp.Diff(wantAges, ages); diff != "" {
				t.Errorf("columns of times (-want +got):\n%s", diff)
			}
		})
	}
	if got := kubectl(t, env, "get", "bt", "-n", namespace, "-o", "wide"); !strings.Contains(got, "2099-03-01T12:00:00Z") || strings.Contains(got, "<invalid>") {
		t.Errorf("kubectl get bt -o wide shows:\n%s\nwant when the task starts", got)
	}
	for short, want := range map[string]string{"bt": "task", "dev": "device", "tq": "default"} {
		if got := kubectl(t, env, "get", short, "-n", namespace, "-o", "name"); !strings.HasSuffix(strings.TrimSpace(got), "/"+want) {
			t.Errorf("kubectl get %s shows %q, want %s", short, got, want)
		}
	}
	lines := strings.Fields(kubectl(t, env, "get", "iot", "-n", namespace, "-o", "name"))
	slices.Sort(lines)
	want := []string{
		"batchtask.iot.batchtask.dev/task", "device.iot.batchtask.dev/device", "product.iot.batchtask.dev/product", "taskquota.iot.batchtask.dev/default",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("kubectl get iot (-want +got):\n%s", diff)
	}
}
