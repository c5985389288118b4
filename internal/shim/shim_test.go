package shim

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
		t.Error("one account has used up the rate of another")
	}
	clock.SetTime(clock.Now().Add(100 * time.Millisecond))
	if got := allowed("a", 5); got != 1 {
		t.Errorf("%d calls after a tenth of a second, want 1", got)
	}
	// What it remembers is bounded by who calls now, and forgetting gives nobody more.
	clock.SetTime(clock.Now().Add(sweepEvery))
	if got := allowed("c", 1); got != 1 || len(limits.buckets) != 1 {
		t.Errorf("%d accounts are remembered after a minute, want 1", len(limits.buckets))
	}
	if got := allowed("a", 5); got != 3 {
		t.Errorf("%d of 5 calls at once after a minute, want the burst of 3", got)
	}
}

// secret has the age that its UID says, the smallest being the oldest.
func secret(namespace, name, uid, secretID string) *corev1.Secret {
	age, _ := strconv.ParseInt(uid, 10, 64)
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), CreationTimestamp: metav1.Unix(age, 0)},
		Data:       map[string][]byte{v1alpha1.CredentialsSecretID: []byte(secretID), v1alpha1.CredentialsSecretKey: []byte("key " + uid)},
	}
}

// Whoever copies a SecretId takes nothing from its owner, and neither learns of the other.
func TestAccounts(t *testing.T) {
	metrics := NewMetrics(prometheus.NewRegistry())
	accounts := NewAccounts(metrics)
	want := func(secretID, candidates string, states ...float64) {
		t.Helper()
		var got []string
		for _, c := range accounts.Lookup(secretID) {
			got = append(got, c.Account+" "+c.SecretKey)
		}
		if strings.Join(got, ", ") != candidates {
			t.Errorf("%s: the candidates are %q, want %q", secretID, got, candidates)
		}
		for i, state := range []string{"accepted", "duplicate", "invalid"} {
			if got := testutil.ToFloat64(metrics.secrets.WithLabelValues(state)); got != states[i] {
				t.Errorf("%v Secrets are %s, want %v", got, state, states[i])
			}
		}
	}
	set := func(s *corev1.Secret, complaints ...string) {
		t.Helper()
		var got []string
		for _, c := range accounts.set(s) {
			got = append(got, c.secret.String()+" "+c.reason)
			if c.secret.Namespace != s.Namespace || !c.private && strings.Contains(c.message, "namespaces") {
				t.Errorf("setting %s/%s tells %s: %s", s.Namespace, s.Name, c.secret, c.message)
			}
		}
		if diff := cmp.Diff(complaints, got); diff != "" {
			t.Errorf("complaints about %s/%s (-want +got):\n%s", s.Namespace, s.Name, diff)
		}
	}
	gone := func(namespace, name string) { accounts.remove(types.NamespacedName{Namespace: namespace, Name: name}) }

	set(secret("ns-a", "one", "2", "ID"))
	want("ID", "ns-a key 2", 1, 0, 0)
	set(secret("ns-b", "one", "3", "ID"))
	set(secret("ns-c", "one", "1", "ID"))
	want("ID", "ns-c key 1, ns-a key 2, ns-b key 3", 3, 0, 0)
	set(secret("ns-b", "one", "3", "ID")) // seen again

	// Two of one namespace: the older is used, the other is told.
	set(secret("ns-a", "two", "4", "ID"), "ns-a/two DuplicateSecretId")
	set(secret("ns-a", "two", "4", "ID"))
	want("ID", "ns-c key 1, ns-a key 2, ns-b key 3", 3, 1, 0)
	gone("ns-a", "one")
	want("ID", "ns-c key 1, ns-b key 3, ns-a key 4", 3, 0, 0)
	set(secret("ns-a", "old", "0", "ID"), "ns-a/two DuplicateSecretId")
	want("ID", "ns-a key 0, ns-c key 1, ns-b key 3", 3, 1, 0)
	gone("ns-a", "old")

	set(secret("ns-b", "one", "3", "OTHER"))
	want("ID", "ns-c key 1, ns-a key 4", 3, 0, 0)
	want("OTHER", "ns-b key 3", 3, 0, 0)
	set(secret("ns-b", "one", "3", ""), "ns-b/one InvalidCredentials")
	set(secret("ns-b", "one", "3", ""))
	want("OTHER", "", 2, 0, 1)
	gone("ns-b", "one")
	want("ID", "ns-c key 1, ns-a key 4", 2, 0, 0)

	// Of more than sixteen namespaces the oldest count; the log is told of others, nobody else.
	for i := range 15 {
		var complaints []string
		if i == 14 {
			complaints = []string{"copy-14/one "}
		}
		set(secret(fmt.Sprint("copy-", i), "one", strconv.Itoa(10+i), "ID"), complaints...)
	}
	if got := accounts.Lookup("ID"); len(got) != 16 || got[0].Account != "ns-c" || got[1].Account != "ns-a" {
		t.Errorf("the candidates are %+v", got)
	}
	gone("ns-c", "one")
	if got := accounts.Lookup("ID"); len(got) != 16 || got[15].Account != "copy-14" {
		t.Errorf("when one has gone the candidates are %+v", got)
	}
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
