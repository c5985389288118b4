package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/taskid"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/test/system"
)

func TestDryRun(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	for _, device := range []*testobj.DeviceBuilder{
		testobj.Device("front-door-1"), testobj.Device("back-door-2"), testobj.Device("window-1"), testobj.Device("door-3").Disabled(),
	} {
		if err := s.Client.Create(t.Context(), device.In(namespace).Product(id).Obj()); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ filter, want string }{
		{"door", "spec.deviceNameFilter: matches 2 devices now"},
		{"^front", "spec.deviceNameFilter: matches 1 device now"},
		{"door$", "spec.deviceNameFilter: matches 0 devices now"},
		{".*", "spec.deviceNameFilter: matches 3 devices now"},
	} {
		s.Warnings.Take()
		task := testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close").Filter(tc.filter)
		if err := s.Client.Create(t.Context(), task.Obj(), client.DryRunAll); err != nil {
			t.Fatalf("dry run with the filter %s: %v", tc.filter, err)
		}
		if diff := cmp.Diff([]string{tc.want}, s.Warnings.Take()); diff != "" {
			t.Errorf("warnings for the filter %s (-want +got):\n%s", tc.filter, diff)
		}
	}
	if slots := s.Slots(t, namespace); len(slots) > 0 {
		t.Errorf("dry runs hold the slots %v", slots)
	}
	// When the namespace is full a dry run says so.
	burst(t, s, 5, namespace, id, "task-")
	task := testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close")
	if err := s.Client.Create(t.Context(), task.Obj(), client.DryRunAll); !isLimit(err) {
		t.Errorf("dry run in a full namespace: %v, want 403 TaskLimitExceeded", err)
	}
}

func TestTaskID(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	const asID = "5ad5aa513332ea4cb86e9ad5"
	for _, tc := range []struct {
		name   string
		label  string
		wantID func(string) bool
	}{
		{"task", "", taskid.Valid},
		{asID, "", func(id string) bool { return id == asID }},
		{"copied", asID, func(id string) bool { return taskid.Valid(id) && id != asID }},
	} {
		task := testobj.BatchTask(tc.name).In(namespace).Product(id).Publish("event", "close")
		if tc.label != "" {
			task.Label(v1alpha1.LabelTaskID, tc.label)
		}
		created := task.Obj()
		if err := s.Client.Create(t.Context(), created); err != nil {
			t.Fatal(err)
		}
		label := created.Labels[v1alpha1.LabelTaskID]
		if !tc.wantID(label) {
			t.Errorf("the label of task %s is %q", tc.name, label)
		}
		if diff := cmp.Diff(task.Obj().Spec, created.Spec); diff != "" {
			t.Errorf("the spec of task %s was changed (-applied +stored):\n%s", tc.name, diff)
		}
		system.WaitFor(t, "status.taskID", func() (bool, any) {
			err := s.Client.Get(t.Context(), client.ObjectKeyFromObject(created), created)
			return err == nil && created.Status.TaskID == label, created.Status.TaskID
		})
	}
}

func TestRefusals(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	conflict := s.Env.Namespace(t)
	s.NextSecond(t, namespace)
	late := testobj.Product("late").In(conflict).ID(id).Obj()
	if err := s.Client.Create(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	system.WaitFor(t, "the conflict to be noticed", func() (bool, any) {
		err := s.Client.Get(t.Context(), client.ObjectKeyFromObject(late), late)
		ready := meta.FindStatusCondition(late.Status.Conditions, v1alpha1.ConditionReady)
		return ready != nil && ready.Reason == v1alpha1.ReasonProductIDConflict, err
	})
	past := time.Now().Add(-time.Hour).Unix()
	task := func() *testobj.BatchTaskBuilder {
		return testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close")
	}
	for _, tc := range []struct {
		name      string
		task      *testobj.BatchTaskBuilder
		wantField string
		wantCause metav1.CauseType
		want      string // part of the message
	}{
		{
			"a pattern that is too large", task().Filter("(.?.?.?.?.?.?.?.?.?.?){100}!"), "spec.deviceNameFilter", metav1.CauseTypeFieldValueInvalid,
			"is too large: it would be compiled to 2204 instructions; at most 2112 are allowed. Repeat counts multiply what they repeat",
		},
		{
			"a pattern that is none", task().Filter("("), "spec.deviceNameFilter", metav1.CauseTypeFieldValueInvalid,
			`spec.deviceNameFilter: Invalid value: "(": is not a regular expression in RE2 syntax: missing closing ): ` + "`(`",
		},
		{
			"a schedule in the past", task().ScheduleAt(past), "spec.scheduleTimeInSeconds", metav1.CauseTypeFieldValueInvalid,
			"is in the past: it is " + time.Unix(past, 0).UTC().Format(time.RFC3339) + ", and now it is ",
		},
		{
			"a topic that is not listed", task().Publish("evnt", ""), "spec.tasks.publishMessageTask.topic", metav1.CauseTypeFieldValueNotSupported,
			`spec.tasks.publishMessageTask.topic: Unsupported value: "evnt": supported values: "event"`,
		},
		{
			"a desired state that is no object", task().UpdateShadow("[1]"), "spec.tasks.updateShadowTask.desired", metav1.CauseTypeFieldValueInvalid,
			`spec.tasks.updateShadowTask.desired: Invalid value: "[1]": not a JSON object: it is an array`,
		},
		{
			"a product that does not exist", task().Product("NONE"), "spec.productID", v1alpha1.CauseProductNotFound,
			fmt.Sprintf(`spec.productID: Invalid value: "NONE": namespace %q has no Product with this spec.productID`, namespace),
		},
		{
			"a product whose ID belongs to another namespace", task().In(conflict), "spec.productID", v1alpha1.CauseProductNotReady,
			fmt.Sprintf(`Product "late" is not Ready: ProductIDConflict: spec.productID: %q belongs to another namespace.`, id),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := s.Client.Create(t.Context(), tc.task.Obj())
			if !apierrors.IsInvalid(err) {
				t.Fatalf("got %v, want 422 Invalid", err)
			}
			if cause, ok := apierrors.StatusCause(err, tc.wantCause); !ok || cause.Field != tc.wantField {
				t.Errorf("there is no cause %s of %s in %+v", tc.wantCause, tc.wantField, err.(apierrors.APIStatus).Status().Details)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("message: %v\nwant it to say: %s", err, tc.want)
			}
		})
	}
	for _, ns := range []string{namespace, conflict} {
		if slots := s.Slots(t, ns); len(slots) > 0 {
			t.Errorf("refused tasks hold the slots %v", slots)
		}
	}
}

// A product and its tasks can be applied in one go.
func TestTaskRightAfterItsProduct(t *testing.T) {
	s := system.Run(t)
	for range 5 {
		namespace := s.Env.Namespace(t)
		id := system.UniqueID(namespace)
		if err := s.Client.Create(t.Context(), testobj.Product("product").In(namespace).ID(id).Obj()); err != nil {
			t.Fatal(err)
		}
		if err := s.Client.Create(t.Context(), testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close").Obj()); err != nil {
			t.Errorf("a task right after its product: %v", err)
		}
	}
}

func TestSchedules(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	s.Warnings.Take()
	now := time.Now()
	far := testobj.BatchTask("far").In(namespace).Product(id).Publish("event", "close").ScheduleAt(now.Unix() + 2*86400).Obj()
	if err := s.Client.Create(t.Context(), far); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(s.Warnings.Take(), "\n")
	if want := "is more than 86400 seconds ahead: the task will start 86400 seconds from now, at "; !strings.Contains(got, want) {
		t.Errorf("warnings: %q, want one that says: %s", got, want)
	}
	system.WaitFor(t, "the task to wait", func() (bool, any) {
		err := s.Client.Get(t.Context(), client.ObjectKeyFromObject(far), far)
		return err == nil && far.Status.Phase == v1alpha1.TaskPhaseWaiting, err
	})
	if got, want := far.Status.ScheduleTime.Time, far.CreationTimestamp.Add(86400*time.Second); !got.Equal(want) {
		t.Errorf("it starts at %v, want %v, 86400 s after it was created", got, want)
	}
	if far.Spec.ScheduleTimeInSeconds != now.Unix()+2*86400 || far.Generation != 1 {
		t.Errorf("its spec was changed: scheduleTimeInSeconds %d, generation %d", far.Spec.ScheduleTimeInSeconds, far.Generation)
	}
	// Callers' clocks may run a little slow.
	slow := testobj.BatchTask("slow").In(namespace).Product(id).Publish("event", "close").ScheduleAt(time.Now().Unix() - 1).Obj()
	if err := s.Client.Create(t.Context(), slow); err != nil {
		t.Fatalf("a schedule within the skew: %v", err)
	}
	system.WaitFor(t, "it to run at once", func() (bool, any) { return s.Executor.Working(slow.UID), nil })
}

// A create that somebody else refuses after a slot was reserved for it keeps the
// slot for the grace time and no longer. That goes by a clock that stands still, or a
// create that takes longer than the grace time would lose its slot too.
func TestRefusedAfterwards(t *testing.T) {
	const grace = time.Second
	now := time.Now().Truncate(time.Second) // reservedAt is cut to whole seconds
	clk := &countingClock{FakePassiveClock: clocktesting.NewFakePassiveClock(now)}
	s := system.RunWithGrace(t, grace, clk)
	namespace, id := s.Namespace(t)
	var configuration admissionregistrationv1.ValidatingWebhookConfigurationList
	if err := s.Client.List(t.Context(), &configuration); err != nil {
		t.Fatal(err)
	}
	ours := configuration.Items[0].Webhooks[0]

	reserved := func() (bool, any) { return len(s.Slots(t, namespace)) > 0, nil }
	// It refuses once a slot has been reserved: webhooks are called side by side.
	denier := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil {
			t.Error(err)
			return
		}
		if !*review.Request.DryRun {
			system.WaitFor(t, "a slot to be reserved", reserved)
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Result: &metav1.Status{Message: "not today"}}
		_ = json.NewEncoder(w).Encode(review)
	}))
	defer denier.Close()
	other := &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "other"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "other.example.org", AdmissionReviewVersions: []string{"v1"}, Rules: ours.Rules, SideEffects: ours.SideEffects,
			ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"refuse": "me"}}, TimeoutSeconds: ptr.To[int32](30),
			ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &denier.URL, CABundle: certificate(denier)},
		}},
	}
	if err := s.Client.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Env.Client.Delete(context.Background(), other); err != nil {
			t.Error(err)
		}
	})
	checkSlots := system.NeverMoreThan(t, s, 5, &v1alpha1.TaskQuotaList{}, namespace, system.CountSlots)
	refused := testobj.BatchTask("refused").In(namespace).Product(id).Publish("event", "close").Label("refuse", "me")
	system.WaitFor(t, "the other webhook to be known", func() (bool, any) {
		err := s.Client.Create(t.Context(), refused.Obj(), client.DryRunAll)
		return err != nil && strings.Contains(err.Error(), "not today"), err
	})
	if err := s.Client.Create(t.Context(), refused.Obj()); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Fatalf("got %v, want the refusal of the other webhook", err)
	}
	for _, left := range []time.Duration{grace, time.Millisecond} {
		clk.SetTime(now.Add(grace - left))
		looks := clk.reads.Load()
		system.WaitFor(t, "the slot to be looked at", func() (bool, any) {
			n := clk.reads.Load()
			return n >= looks+2 || len(s.Slots(t, namespace)) == 0, n // freed, it is not looked at any more
		})
		if slots := s.Slots(t, namespace); len(slots) != 1 {
			t.Errorf("%v before the end of the grace time the slots are %v, want the one", left, slots)
		}
	}
	clk.SetTime(now.Add(grace))
	system.WaitFor(t, "the slot to be freed", func() (bool, any) {
		slots := s.Slots(t, namespace)
		return len(slots) == 0, slots
	})
	admitted := 0
	for i := range 10 {
		admitted += len(burst(t, s, 1, namespace, id, fmt.Sprintf("task-%d-", i)))
	}
	if admitted != 5 {
		t.Errorf("%d tasks were admitted after that, want 5", admitted)
	}
	checkSlots()
}

// countingClock counts how often it is read.
type countingClock struct {
	*clocktesting.FakePassiveClock
	reads atomic.Int64
}

func (c *countingClock) Now() time.Time {
	c.reads.Add(1)
	return c.FakePassiveClock.Now()
}

// A lowered limit ends no task, and lets no new one in before there is room.
func TestLoweredLimit(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	admitted := burst(t, s, 5, namespace, id, "task-")
	system.WaitFor(t, "five tasks to be active", func() (bool, any) { return len(s.Active(t, namespace)) == 5, nil })
	ledger := &v1alpha1.TaskQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.TaskQuotaName}}
	if err := s.Client.Patch(t.Context(), ledger, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"maxActiveTasks":2}}`))); err != nil {
		t.Fatal(err)
	}
	for i, task := range admitted[:4] {
		if more := burst(t, s, 3, namespace, id, fmt.Sprintf("more-%d-", i)); len(more) != 0 {
			t.Errorf("with %d active tasks and a limit of 2, %d were admitted", 5-i, len(more))
			break
		}
		if err := s.Client.Delete(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		system.WaitFor(t, "a slot to be freed", func() (bool, any) {
			slots := s.Slots(t, namespace)
			return len(slots) == 4-i, slots
		})
	}
	if more := burst(t, s, 3, namespace, id, "last-"); len(more) != 1 {
		t.Errorf("with one active task and a limit of 2, %d were admitted", len(more))
	}
}

// A value of another type than the schema's is refused by the schema, field by field, as
// if there were no webhook.
func TestWrongTypes(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	for _, tc := range []struct {
		field string
		value any
	}{
		{"scheduleTimeInSeconds", "1800000000"},
		{"scheduleTimeInSeconds", float64(1 << 63)},
		{"scheduleTimeInSeconds", 1.5},
		{"deviceNameFilter", int64(17)},
		{"cancel", "true"},
		{"tasks", "x"},
	} {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(testobj.BatchTask("typed").In(namespace).Product(id).Publish("event", "x").Obj())
		if err != nil {
			t.Fatal(err)
		}
		task := &unstructured.Unstructured{Object: content}
		task.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("BatchTask"))
		if err := unstructured.SetNestedField(task.Object, tc.value, "spec", tc.field); err != nil {
			t.Fatal(err)
		}
		err = s.Client.Create(t.Context(), task)
		var refused apierrors.APIStatus
		if !errors.As(err, &refused) || !apierrors.IsInvalid(err) || refused.Status().Details == nil {
			t.Errorf("%s: %v is answered with %v, want 422 Invalid", tc.field, tc.value, err)
			continue
		}
		causes := refused.Status().Details.Causes
		if !slices.ContainsFunc(causes, func(c metav1.StatusCause) bool { return c.Field == "spec."+tc.field }) {
			t.Errorf("%s: %v: the causes are %+v", tc.field, tc.value, causes)
		}
	}
	if slots := s.Slots(t, namespace); len(slots) > 0 {
		t.Errorf("refused tasks hold the slots %v", slots)
	}
}
