// Package api_test shows that the API server itself keeps the rules that the
// schemas of the custom resources state: no webhook and no controller runs here.
package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// object makes an object of a kind with any content, as a user may write it.
func object(kind, namespace, name string, content map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

// fields returns the fields that a refusal names, sorted.
func fields(err error) []string {
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Details == nil {
		return []string{fmt.Sprint(err)}
	}
	var names []string
	for _, cause := range status.Status().Details.Causes {
		if cause.Field != "" && cause.Field != "<nil>" { // <nil> says only that rules were not evaluated
			names = append(names, cause.Field)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// spec returns a spec in which values have been set, or taken out if they are nil.
func spec(set map[string]any) map[string]any {
	content := map[string]any{
		"taskType": "PublishMessage", "productID": "ABCDE12345", "deviceNameFilter": "door$",
		"tasks": map[string]any{"publishMessageTask": map[string]any{"topic": "event", "payload": "close"}},
	}
	for key, value := range set {
		if content[key] = value; value == nil {
			delete(content, key)
		}
	}
	return map[string]any{"spec": content}
}

func message(topic, payload string) map[string]any {
	return map[string]any{"publishMessageTask": map[string]any{"topic": topic, "payload": payload}}
}

func desired(text string) map[string]any {
	return map[string]any{"updateShadowTask": map[string]any{"desired": text}}
}

func TestBatchTaskSchema(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	for i, tc := range []struct {
		name string
		set  map[string]any
		want []string // fields that are refused; nil when it is admitted
	}{
		{name: "the example"},
		{name: "a shadow update", set: map[string]any{"taskType": "UpdateShadow", "tasks": desired("{}")}},
		{name: "the largest of all", set: map[string]any{
			"productID": strings.Repeat("P", 32), "deviceNameFilter": strings.Repeat("门", 1024),
			"tasks":                 message(strings.Repeat("a", 128), strings.Repeat("a", 16384)),
			"scheduleTimeInSeconds": int64(253402300799), "maxExecutionTimeInSeconds": int64(86400), "ttlSecondsAfterFinished": int64(315360000),
		}},
		{name: "the least of all", set: map[string]any{
			"scheduleTimeInSeconds": int64(0), "maxExecutionTimeInSeconds": int64(0), "ttlSecondsAfterFinished": int64(0),
		}},
		{name: "no type", set: map[string]any{"taskType": nil}, want: []string{"spec.taskType"}},
		{name: "another type", set: map[string]any{"taskType": "Reboot"}, want: []string{"spec.taskType"}},
		{name: "no product", set: map[string]any{"productID": nil}, want: []string{"spec.productID"}},
		{name: "a product ID with a topic in it", set: map[string]any{"productID": "A/B"}, want: []string{"spec.productID"}},
		{name: "a product ID that is too long", set: map[string]any{"productID": strings.Repeat("P", 33)}, want: []string{"spec.productID"}},
		{name: "no filter", set: map[string]any{"deviceNameFilter": nil}, want: []string{"spec.deviceNameFilter"}},
		{name: "an empty filter", set: map[string]any{"deviceNameFilter": ""}, want: []string{"spec.deviceNameFilter"}},
		{name: "a filter that is too long", set: map[string]any{"deviceNameFilter": strings.Repeat("a", 1025)}, want: []string{"spec.deviceNameFilter"}},
		{name: "no tasks", set: map[string]any{"tasks": nil}, want: []string{"spec.tasks"}},
		{name: "no block", set: map[string]any{"tasks": map[string]any{}}, want: []string{"spec.tasks.publishMessageTask"}},
		{name: "the wrong block for PublishMessage", set: map[string]any{"tasks": desired("{}")}, want: []string{"spec.tasks.publishMessageTask"}},
		{name: "the wrong block for UpdateShadow", set: map[string]any{"taskType": "UpdateShadow"}, want: []string{"spec.tasks.updateShadowTask"}},
		{name: "an empty topic", set: map[string]any{"tasks": message("", "")}, want: []string{"spec.tasks.publishMessageTask.topic"}},
		{name: "a wildcard", set: map[string]any{"tasks": message("a/+", "")}, want: []string{"spec.tasks.publishMessageTask.topic"}},
		{name: "a topic that is too long", set: map[string]any{"tasks": message(strings.Repeat("a", 129), "")}, want: []string{"spec.tasks.publishMessageTask.topic"}},
		{name: "a payload that is too long", set: map[string]any{"tasks": message("event", strings.Repeat("a", 16385))}, want: []string{"spec.tasks.publishMessageTask.payload"}},
		{name: "an empty desired state", set: map[string]any{"taskType": "UpdateShadow", "tasks": desired("")}, want: []string{"spec.tasks.updateShadowTask.desired"}},
		{name: "a desired state that is too long", set: map[string]any{"taskType": "UpdateShadow", "tasks": desired(strings.Repeat("a", 16385))}, want: []string{"spec.tasks.updateShadowTask.desired"}},
		{name: "a negative schedule", set: map[string]any{"scheduleTimeInSeconds": int64(-1)}, want: []string{"spec.scheduleTimeInSeconds"}},
		{name: "a schedule in milliseconds", set: map[string]any{"scheduleTimeInSeconds": int64(1772366394000)}, want: []string{"spec.scheduleTimeInSeconds"}},
		{name: "a negative execution time", set: map[string]any{"maxExecutionTimeInSeconds": int64(-1)}, want: []string{"spec.maxExecutionTimeInSeconds"}},
		{name: "an execution time of more than a day", set: map[string]any{"maxExecutionTimeInSeconds": int64(86401)}, want: []string{"spec.maxExecutionTimeInSeconds"}},
		{name: "a negative life", set: map[string]any{"ttlSecondsAfterFinished": int64(-1)}, want: []string{"spec.ttlSecondsAfterFinished"}},
		{name: "a life of more than ten years", set: map[string]any{"ttlSecondsAfterFinished": int64(315360001)}, want: []string{"spec.ttlSecondsAfterFinished"}},
		{name: "a number as text", set: map[string]any{"maxExecutionTimeInSeconds": "60"}, want: []string{"spec.maxExecutionTimeInSeconds"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := env.Client.Create(t.Context(), object("BatchTask", namespace, fmt.Sprint("task-", i), spec(tc.set)))
			if tc.want == nil {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !apierrors.IsInvalid(err) {
				t.Fatalf("got %v, want 422 Invalid", err)
			}
			if diff := cmp.Diff(tc.want, fields(err)); diff != "" {
				t.Errorf("fields (-want +got):\n%s\n%v", diff, err)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	for _, tc := range []struct {
		kind    string
		name    string
		content map[string]any
		want    map[string]any // spec
	}{
		{"BatchTask", "task", spec(nil), spec(map[string]any{
			"scheduleTimeInSeconds": int64(0), "maxExecutionTimeInSeconds": int64(86400), "cancel": false,
		})},
		{
			"Product", "product",
			map[string]any{"spec": map[string]any{"productID": "P"}},
			map[string]any{"spec": map[string]any{"productID": "P", "fleet": map[string]any{"type": "Kubernetes"}}},
		},
		{
			"Device", "device",
			map[string]any{"spec": map[string]any{"productID": "P", "deviceName": "D:1"}},
			map[string]any{"spec": map[string]any{"productID": "P", "deviceName": "D:1"}},
		},
		{"TaskQuota", "default", map[string]any{}, map[string]any{"spec": map[string]any{
			"maxActiveTasks": int64(5), "maxProductIDs": int64(100), "maxFinishedTasks": int64(1000), "maxFinishedLegacyTasks": int64(10000),
		}}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			created := object(tc.kind, namespace, tc.name, tc.content)
			if err := env.Client.Create(t.Context(), created); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want["spec"], created.Object["spec"]); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBatchTaskUpdates(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	for i, tc := range []struct {
		name  string
		from  func(*testobj.BatchTaskBuilder)
		patch string
		want  []string // fields that are refused
	}{
		{name: "type", patch: `{"spec":{"taskType":"UpdateShadow"}}`, want: []string{"spec.taskType"}},
		{name: "product", patch: `{"spec":{"productID":"OTHER"}}`, want: []string{"spec.productID"}},
		{name: "filter", patch: `{"spec":{"deviceNameFilter":"window"}}`, want: []string{"spec.deviceNameFilter"}},
		{name: "topic", patch: `{"spec":{"tasks":{"publishMessageTask":{"topic":"other"}}}}`, want: []string{"spec.tasks"}},
		{name: "payload", patch: `{"spec":{"tasks":{"publishMessageTask":{"payload":"open"}}}}`, want: []string{"spec.tasks"}},
		{name: "the other block is added", patch: `{"spec":{"tasks":{"updateShadowTask":{"desired":"{}"}}}}`, want: []string{"spec.tasks"}},
		{name: "schedule", patch: `{"spec":{"scheduleTimeInSeconds":1900000000}}`, want: []string{"spec.scheduleTimeInSeconds"}},
		{
			name: "schedule is taken out", from: func(b *testobj.BatchTaskBuilder) { b.ScheduleAt(1900000000) },
			patch: `{"spec":{"scheduleTimeInSeconds":null}}`, want: []string{"spec.scheduleTimeInSeconds"},
		},
		{name: "execution time", patch: `{"spec":{"maxExecutionTimeInSeconds":60}}`, want: []string{"spec.maxExecutionTimeInSeconds"}},
		{
			name: "execution time is taken out", from: func(b *testobj.BatchTaskBuilder) { b.MaxExecution(60) },
			patch: `{"spec":{"maxExecutionTimeInSeconds":null}}`, want: []string{"spec.maxExecutionTimeInSeconds"},
		},
		{name: "cancel", patch: `{"spec":{"cancel":true}}`},
		{name: "cancel is taken back", from: func(b *testobj.BatchTaskBuilder) { b.Cancel() }, patch: `{"spec":{"cancel":false}}`, want: []string{"spec.cancel"}},
		{name: "cancel is taken out", from: func(b *testobj.BatchTaskBuilder) { b.Cancel() }, patch: `{"spec":{"cancel":null}}`, want: []string{"spec.cancel"}},
		{name: "life", patch: `{"spec":{"ttlSecondsAfterFinished":0}}`},
		{name: "life and cancel of a cancelled task", from: func(b *testobj.BatchTaskBuilder) { b.Cancel() }, patch: `{"spec":{"ttlSecondsAfterFinished":7,"cancel":true}}`},
		{name: "labels", patch: `{"metadata":{"labels":{"a":"b"}}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			builder := testobj.BatchTask(fmt.Sprint("task-", i)).In(namespace).Publish("event", "close")
			if tc.from != nil {
				tc.from(builder)
			}
			task := builder.Obj()
			if err := env.Client.Create(t.Context(), task); err != nil {
				t.Fatal(err)
			}
			err := env.Client.Patch(t.Context(), task, client.RawPatch(types.MergePatchType, []byte(tc.patch)))
			if tc.want == nil {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !apierrors.IsInvalid(err) {
				t.Fatalf("got %v, want 422 Invalid", err)
			}
			got := slices.DeleteFunc(fields(err), func(f string) bool { return f == "spec.tasks.updateShadowTask" })
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("fields (-want +got):\n%s\n%v", diff, err)
			}
		})
	}
}

// Phases only move forward: every pair of phases through the status subresource.
func TestPhases(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	const waiting, processing = v1alpha1.TaskPhaseWaiting, v1alpha1.TaskPhaseProcessing
	const done, failed, cancelled = v1alpha1.TaskPhaseDone, v1alpha1.TaskPhaseFailed, v1alpha1.TaskPhaseCancelled
	all := []v1alpha1.TaskPhase{"", waiting, processing, done, failed, cancelled}
	allowed := map[v1alpha1.TaskPhase][]v1alpha1.TaskPhase{
		"":         all,
		waiting:    {waiting, processing, done, failed, cancelled},
		processing: {processing, done, failed, cancelled},
		done:       {done}, failed: {failed}, cancelled: {cancelled},
	}
	for i, from := range all {
		for j, to := range all {
			t.Run(fmt.Sprintf("%q to %q", from, to), func(t *testing.T) {
				task := testobj.BatchTask(fmt.Sprintf("task-%d-%d", i, j)).In(namespace).Publish("event", "close").Obj()
				if err := env.Client.Create(t.Context(), task); err != nil {
					t.Fatal(err)
				}
				if from != "" {
					task.Status.Phase = from
					if err := env.Client.Status().Update(t.Context(), task); err != nil {
						t.Fatal(err)
					}
				}
				// Something else changes too: an update that changes nothing shows nothing.
				task.Status.Phase, task.Status.ErrMsg = to, "changed"
				err := env.Client.Status().Update(t.Context(), task)
				if want := slices.Contains(allowed[from], to); (err == nil) != want {
					t.Errorf("allowed: %v (%v), want %v", err == nil, err, want)
				}
				if err != nil && !slices.Equal(fields(err), []string{"status.phase"}) {
					t.Errorf("the refusal names %v, want status.phase: %v", fields(err), err)
				}
			})
		}
	}
	t.Run("the whole status cannot be taken away", func(t *testing.T) {
		task := testobj.BatchTask("stripped").In(namespace).Publish("event", "close").Obj()
		if err := env.Client.Create(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		task.Status.Phase = done
		if err := env.Client.Status().Update(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		if err := env.Client.Status().Patch(t.Context(), task, client.RawPatch(types.MergePatchType, []byte(`{"status":null}`))); !apierrors.IsInvalid(err) {
			t.Errorf("got %v, want 422 Invalid", err)
		}
	})
	t.Run("a status that a user gives is ignored", func(t *testing.T) {
		task := testobj.BatchTask("given").In(namespace).Publish("event", "close").Phase(done).Obj()
		if err := env.Client.Create(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		if task.Status.Phase != "" {
			t.Errorf("the phase is %s", task.Status.Phase)
		}
	})
}

func TestTaskQuota(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	other := testobj.TaskQuota(namespace).Obj()
	other.Name = "other"
	if err := env.Client.Create(t.Context(), other); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `named "default"`) {
		t.Errorf("a TaskQuota of another name: %v", err)
	}
	for _, limit := range []int32{-1, 1001} {
		if err := env.Client.Create(t.Context(), testobj.TaskQuota(namespace).Limit(limit).Obj()); !apierrors.IsInvalid(err) ||
			!slices.Equal(fields(err), []string{"spec.maxActiveTasks"}) {
			t.Errorf("a limit of %d: %v", limit, err)
		}
	}
	ledger := testobj.TaskQuota(namespace).Obj()
	if err := env.Client.Create(t.Context(), ledger); err != nil {
		t.Fatal(err)
	}
	hold := func(names ...string) error {
		ledger.Status.Slots = nil
		for _, name := range names {
			ledger.Status.Slots = append(ledger.Status.Slots, v1alpha1.TaskSlot{UID: types.UID(name), Name: name, ReservedAt: metav1.Now()})
		}
		err := env.Client.Status().Update(t.Context(), ledger)
		if err != nil {
			if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(ledger), ledger); err != nil {
				t.Fatal(err)
			}
		}
		return err
	}
	limit := func(n int32) {
		t.Helper()
		ledger.Spec.MaxActiveTasks = n
		if err := env.Client.Update(t.Context(), ledger); err != nil {
			t.Fatalf("setting the limit to %d: %v", n, err)
		}
	}
	if err := hold("a", "b", "c", "d", "e", "f"); !apierrors.IsInvalid(err) || !slices.Equal(fields(err), []string{"status.slots"}) {
		t.Errorf("six slots at once: %v", err)
	}
	if err := hold("a", "b", "c", "d", "e"); err != nil {
		t.Fatal(err)
	}
	if err := hold("a", "b", "c", "d", "e", "f"); !apierrors.IsInvalid(err) {
		t.Errorf("a sixth slot: %v", err)
	}
	if err := hold("a", "a"); !apierrors.IsInvalid(err) {
		t.Errorf("one task with two slots: %v", err)
	}
	limit(2)
	if err := hold("a", "b", "c", "d", "e", "f"); !apierrors.IsInvalid(err) {
		t.Errorf("a sixth slot after the limit was lowered to 2: %v", err)
	}
	for _, names := range [][]string{{"a", "b", "c", "d"}, {"a", "b", "c"}, {"a", "b"}, {"a"}, {"a", "g"}} {
		if err := hold(names...); err != nil {
			t.Errorf("with a limit of 2, going on to %v: %v", names, err)
		}
	}
	if err := hold("a", "g", "h"); !apierrors.IsInvalid(err) {
		t.Errorf("a third slot with a limit of 2: %v", err)
	}
	limit(3)
	if err := hold("a", "g", "h"); err != nil {
		t.Errorf("a third slot with a limit of 3: %v", err)
	}
}

func TestProductAndDeviceSchema(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	device := func(id, name string) client.Object {
		d := testobj.Device("device").In(namespace).Product(id).Obj()
		d.Spec.DeviceName = name
		return d
	}
	kept := func(in v1alpha1.FleetType, secret string) *v1alpha1.Product {
		p := testobj.Product("kept").In(namespace).Obj()
		p.Spec.Fleet.Type = in
		if secret != "" {
			p.Spec.Fleet.Postgres = &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: secret}}
		}
		return p
	}
	for _, tc := range []struct {
		name   string
		object client.Object
		want   []string
	}{
		{"a fleet in a database", kept(v1alpha1.FleetTypePostgres, "db"), nil},
		{"a fleet in no database that is named", kept(v1alpha1.FleetTypePostgres, ""), []string{"spec.fleet.postgres"}},
		{"a fleet of objects with a database", kept(v1alpha1.FleetTypeKubernetes, "db"), []string{"spec.fleet.postgres"}},
		{"a fleet somewhere else", kept("MySQL", ""), []string{"spec.fleet.type"}},
		{"a product ID with a topic in it", testobj.Product("p").In(namespace).ID("a/b").Obj(), []string{"spec.productID"}},
		{"no product ID", testobj.Product("p").In(namespace).ID("").Obj(), []string{"spec.productID"}},
		{"a topic with levels", testobj.Product("p").In(namespace).Topics("ok", "a/b").Obj(), []string{"spec.topics[1]"}},
		{"a topic twice", testobj.Product("p").In(namespace).Topics("a", "a").Obj(), []string{"spec.topics[1]"}},
		{"a device name with a wildcard", device("P", "+"), []string{"spec.deviceName"}},
		{"a device name that is too long", device("P", strings.Repeat("a", 49)), []string{"spec.deviceName"}},
		{"a device of an illegal product", device("", "d"), []string{"spec.productID"}},
		{"the longest device name", device("P", strings.Repeat("a", 48)), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := env.Client.Create(t.Context(), tc.object, client.DryRunAll)
			if tc.want == nil {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !apierrors.IsInvalid(err) || !slices.Equal(fields(err), tc.want) {
				t.Errorf("got %v, want a refusal of %v", err, tc.want)
			}
		})
	}
	p, d := testobj.Product("p").In(namespace).Obj(), testobj.Device("d").In(namespace).Obj()
	for _, o := range []client.Object{p, d} {
		if err := env.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		object client.Object
		patch  string
		want   []string
	}{
		{p, `{"spec":{"productID":"OTHER"}}`, []string{"spec.productID"}},
		{d, `{"spec":{"productID":"OTHER"}}`, []string{"spec.productID"}},
		{d, `{"spec":{"deviceName":"other"}}`, []string{"spec.deviceName"}},
		{p, `{"spec":{"topics":["event"]}}`, nil},
		{p, `{"spec":{"fleet":{"type":"Postgres","postgres":{"secretRef":{"name":"db"}}}}}`, []string{"spec.fleet.type"}},
		{d, `{"spec":{"disabled":true}}`, nil},
	} {
		err := env.Client.Patch(t.Context(), tc.object, client.RawPatch(types.MergePatchType, []byte(tc.patch)))
		if tc.want == nil && err != nil || tc.want != nil && (!apierrors.IsInvalid(err) || !slices.Equal(fields(err), tc.want)) {
			t.Errorf("%T %s: %v, want a refusal of %v", tc.object, tc.patch, err, tc.want)
		}
	}
}
