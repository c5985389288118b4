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

// Whoever copies the SecretId of another account takes nothing from it, in whatever order the
// Secrets were made, and neither is told anything of the other.
func TestCopiedSecretID(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c, thief := f.newCaller(t), f.newCaller(t)
	id := c.mustCreate(t, map[string]string{"scheduleTimeInSeconds": inAnHour()})
	// The thief's own Secret is older than one that the owner makes later.
	next := *c
	next.secretID, next.secretKey = "AKIDnext"+c.namespace, "the next key"
	f.putSecret(t, thief.namespace, "early", next.secretID, "a guess")
	f.putSecret(t, c.namespace, "next", next.secretID, next.secretKey)
	f.putSecret(t, thief.namespace, "late", c.secretID, "another guess")
	forged := *thief
	forged.secretID, forged.secretKey = c.secretID, "another guess"
	forged.accepted(t) // as what it is: the thief's own account
	next.accepted(t)
	for range 50 {
		for _, owner := range []*caller{c, &next} {
			if got := owner.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id}); got["code"] != 0.0 {
				t.Fatalf("the owner is answered %v", got)
			}
		}
	}
	if got := forged.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id}); got["code"] != 5000.0 {
		t.Errorf("the thief is answered %v", got)
	}
	select {
	case event := <-f.events.Events:
		t.Errorf("event %q", event)
	default:
	}

	// The same key as well: then nobody can tell whose call it is.
	same := f.putSecret(t, thief.namespace, "late", c.secretID, c.secretKey)
	system.WaitFor(t, "the call to be nobody's", func() (bool, any) {
		got := c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id})
		return got["code"] == 4100.0, got
	})
	for _, name := range []string{c.namespace + "/caller", thief.namespace + "/late"} {
		if !strings.Contains(f.log.String(), name) {
			t.Errorf("the log does not name Secret %s", name)
		}
	}
	if err := f.Env.Client.Delete(t.Context(), same); err != nil {
		t.Fatal(err)
	}
	c.accepted(t)
}

// Of two Secrets of one namespace with one SecretId the older is used, and the other is told.
func TestDuplicateSecretID(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	f.putSecret(t, c.namespace, "duplicate", c.secretID, "another key")
	event := <-f.events.Events
	if !strings.Contains(event, v1alpha1.ReasonDuplicateSecretID) || !strings.Contains(event, "of this namespace") {
		t.Errorf("event %q", event)
	}
	c.accepted(t)
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
