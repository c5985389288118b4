package shim_test

import (
	"strings"
	"testing"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/test/system"
)

// Credentials are what the Secrets say, within a moment: several pairs of one
// account, a changed key, a Secret that is gone or has lost its label.
func TestRotation(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	next := *c
	next.secretID, next.secretKey = "AKIDnext"+c.namespace, "the next key"
	secret := f.putSecret(t, c.namespace, "next", next.secretID, next.secretKey+"\n") // as from a file
	next.accepted(t)
	c.accepted(t)

	id := c.mustCreate(t, map[string]string{"scheduleTimeInSeconds": inAnHour()})
	if got := next.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id}); got["code"] != 0.0 {
		t.Errorf("another pair of the same account is answered %v", got)
	}

	old := next
	next.secretKey = "changed"
	f.putSecret(t, c.namespace, "next", next.secretID, next.secretKey)
	next.accepted(t)
	if got := old.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id}); got["code"] != 4100.0 {
		t.Errorf("with the old key the answer is %v", got)
	}

	unknown := func(why string) {
		t.Helper()
		system.WaitFor(t, "the pair to be unknown, as "+why, func() (bool, any) {
			got := next.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id})
			return got["code"] == 4104.0, got
		})
	}
	if err := f.Env.Client.Get(t.Context(), keyOf(secret), secret); err != nil {
		t.Fatal(err)
	}
	secret.Labels = nil
	if err := f.Env.Client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	unknown("its Secret has no label any more")
	f.putSecret(t, c.namespace, "other", next.secretID, next.secretKey)
	next.accepted(t)
	other := f.putSecret(t, c.namespace, "other", next.secretID, next.secretKey)
	if err := f.Env.Client.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	unknown("its Secret is gone")
}

// Of two Secrets with one SecretId neither is accepted, and both are told, without
// a word of the other's namespace.
func TestDuplicateSecretID(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c, thief := f.newCaller(t), f.newCaller(t)
	stolen := f.putSecret(t, thief.namespace, "stolen", c.secretID, "another key")
	system.WaitFor(t, "the SecretId not to be accepted", func() (bool, any) {
		got := c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"})
		return got["code"] == 4104.0, got
	})
	forged := *thief
	forged.secretID, forged.secretKey = c.secretID, "another key"
	if got := forged.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"}); got["code"] != 4104.0 {
		t.Errorf("with the second Secret's key the answer is %v", got)
	}
	for range 2 {
		event := <-f.events.Events
		if !strings.Contains(event, v1alpha1.ReasonDuplicateSecretID) || strings.Contains(event, c.namespace) || strings.Contains(event, thief.namespace) {
			t.Errorf("event %q", event)
		}
	}
	if err := f.Env.Client.Delete(t.Context(), stolen); err != nil {
		t.Fatal(err)
	}
	c.accepted(t)
	thief.accepted(t)
}

func TestInvalidCredentials(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	namespace := f.Env.Namespace(t)
	for name, test := range map[string]struct{ secretID, secretKey, want string }{
		"no-id":    {"", "key", "data.secretId: must be 1 to 128"},
		"no-key":   {"AKID", "\n", "data.secretKey: must be 1 to 1024"},
		"spaces":   {"AK ID", "key", "data.secretId: must be"},
		"long-id":  {strings.Repeat("A", 129), "key", "data.secretId: must be"},
		"long-key": {"AKID", strings.Repeat("k", 1025), "data.secretKey: must be"},
	} {
		f.putSecret(t, namespace, name, test.secretID, test.secretKey)
		event := <-f.events.Events
		if !strings.Contains(event, v1alpha1.ReasonInvalidCredentials) || !strings.Contains(event, test.want) {
			t.Errorf("%s: event %q, want one with %q", name, event, test.want)
		}
	}
}
