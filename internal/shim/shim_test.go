package shim

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	testingclock "k8s.io/utils/clock/testing"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/qcloud"
)

func TestLimits(t *testing.T) {
	clock := testingclock.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	limits := NewLimits(10, 3, clock)
	allowed := func(id string, calls int) (n int) {
		for range calls {
			if limits.Allow(id) {
				n++
			}
		}
		return n
	}
	if got := allowed("a", 5); got != 3 {
		t.Errorf("%d of 5 calls at once, want the burst of 3", got)
	}
	if got := allowed("b", 1); got != 1 {
		t.Error("one SecretId has used up the rate of another")
	}
	clock.SetTime(clock.Now().Add(100 * time.Millisecond))
	if got := allowed("a", 5); got != 1 {
		t.Errorf("%d calls after a tenth of a second, want 1", got)
	}
	// What it remembers is bounded by who calls now, and forgetting gives nobody more.
	clock.SetTime(clock.Now().Add(sweepEvery))
	if got := allowed("c", 1); got != 1 || len(limits.buckets) != 1 {
		t.Errorf("%d SecretIds are remembered after a minute, want 1", len(limits.buckets))
	}
	if got := allowed("a", 5); got != 3 {
		t.Errorf("%d of 5 calls at once after a minute, want the burst of 3", got)
	}
}

func secret(namespace, name, uid, secretID string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Data:       map[string][]byte{v1alpha1.CredentialsSecretID: []byte(secretID), v1alpha1.CredentialsSecretKey: []byte("key")},
	}
}

func TestAccounts(t *testing.T) {
	metrics := NewMetrics(prometheus.NewRegistry())
	accounts := NewAccounts(metrics)
	want := func(secretID, account string, states ...float64) {
		t.Helper()
		_, got, ok := accounts.Lookup(secretID)
		if got != account || ok != (account != "") {
			t.Errorf("%s belongs to %q, want %q", secretID, got, account)
		}
		for i, state := range []string{"accepted", "duplicate", "invalid"} {
			if got := testutil.ToFloat64(metrics.secrets.WithLabelValues(state)); got != states[i] {
				t.Errorf("%v Secrets are %s, want %v", got, state, states[i])
			}
		}
	}
	set := func(s *corev1.Secret, complaints int) {
		t.Helper()
		if got := accounts.set(s); len(got) != complaints {
			t.Errorf("setting %s/%s complains %v, want %d complaints", s.Namespace, s.Name, got, complaints)
		}
	}
	set(secret("ns-a", "one", "1", "ID"), 0)
	want("ID", "ns-a", 1, 0, 0)
	set(secret("ns-b", "one", "2", "ID"), 2)
	want("ID", "", 0, 2, 0)
	set(secret("ns-b", "one", "2", "ID"), 0) // seen again, not told again
	set(secret("ns-c", "one", "3", "ID"), 1) // the first two have been told
	want("ID", "", 0, 3, 0)
	set(secret("ns-b", "one", "2", "OTHER"), 0)
	accounts.remove(types.NamespacedName{Namespace: "ns-c", Name: "one"})
	want("ID", "ns-a", 2, 0, 0)
	want("OTHER", "ns-b", 2, 0, 0)
	set(secret("ns-b", "one", "2", ""), 1)
	set(secret("ns-b", "one", "2", ""), 0)
	want("OTHER", "", 1, 0, 1)
	accounts.remove(types.NamespacedName{Namespace: "ns-b", Name: "one"})
	want("ID", "ns-a", 1, 0, 0)
}

func TestRefusal(t *testing.T) {
	status := func(reason metav1.StatusReason, causes ...metav1.StatusCause) error {
		return fmt.Errorf("create task: %w", &apierrors.StatusError{ErrStatus: metav1.Status{
			Reason: reason, Message: "prose that says TaskLimitExceeded and ProductNotFound", Details: &metav1.StatusDetails{Causes: causes},
		}})
	}
	cause := func(kind metav1.CauseType, field string) metav1.StatusCause {
		return metav1.StatusCause{Type: kind, Field: field, Message: "why"}
	}
	resource := schema.GroupResource{Group: "iot.batchtask.dev", Resource: "batchtasks"}
	for name, test := range map[string]struct {
		err       error
		kind      qcloud.Kind
		parameter string
	}{
		"limit":                 {status(metav1.StatusReasonForbidden, cause(v1alpha1.CauseTaskLimitExceeded, "")), qcloud.KindLimitExceeded, ""},
		"product":               {status(metav1.StatusReasonInvalid, cause(v1alpha1.CauseProductNotFound, "spec.productID")), qcloud.KindProductNotExist, "ProductId"},
		"product not ready":     {status(metav1.StatusReasonInvalid, cause(v1alpha1.CauseProductNotReady, "spec.productID")), qcloud.KindInternal, ""},
		"missing":               {status(metav1.StatusReasonInvalid, cause(metav1.CauseTypeFieldValueRequired, "spec.tasks")), qcloud.KindMissingParameter, "Tasks"},
		"type":                  {status(metav1.StatusReasonInvalid, cause(metav1.CauseTypeTypeInvalid, "spec.taskType")), qcloud.KindInvalidParameter, "TaskType"},
		"value":                 {status(metav1.StatusReasonInvalid, cause("FieldValueTooShort", "spec.deviceNameFilter")), qcloud.KindInvalidValue, "DeviceNameFilter"},
		"the first that counts": {status(metav1.StatusReasonInvalid, cause("Strange", ""), cause(metav1.CauseTypeTooLong, "spec.tasks.publishMessageTask.payload")), qcloud.KindInvalidValue, "Tasks.PublishMessageTask.Payload"},
		"prose alone":           {status(metav1.StatusReasonForbidden), qcloud.KindInternal, ""},
		"forbidden otherwise":   {status(metav1.StatusReasonForbidden, cause("NamespaceTerminating", "")), qcloud.KindInternal, ""},
		"limit, not forbidden":  {status(metav1.StatusReasonInternalError, cause(v1alpha1.CauseTaskLimitExceeded, "")), qcloud.KindInternal, ""},
		"conflict":              {apierrors.NewConflict(resource, "a", errors.New("changed")), qcloud.KindInternal, ""},
		"no API server":         {errors.New("connection refused"), qcloud.KindInternal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := qcloud.AsError(refusal(qcloud.V3, test.err))
			if got.Kind != test.kind || got.Parameter != test.parameter {
				t.Errorf("%s about %q, want %s about %q", got.Kind, got.Parameter, test.kind, test.parameter)
			}
			if !errors.Is(got, test.err) {
				t.Errorf("the log would not tell the cause: %v", got)
			}
		})
	}
}
