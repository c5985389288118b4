package qcloud

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	testingclock "k8s.io/utils/clock/testing"
)

// pairs are credentials of which several may have one SecretId.
type pairs map[string][]Candidate

func (p pairs) Lookup(secretID string) []Candidate { return p[secretID] }

func verifierOf(p pairs, options Options) *Verifier {
	return NewVerifier(p, testingclock.NewFakePassiveClock(time.Unix(testTime, 0)), options)
}

// accounts is a limiter that writes down whose rate is used.
type accounts []string

func (a *accounts) Allow(account string) bool {
	*a = append(*a, account)
	return true
}

// Of several accounts that have a SecretId the one whose key signs is the caller, wherever it
// stands; nonces and rates are its own.
func TestCandidates(t *testing.T) {
	var copies []Candidate
	for i := range 20 {
		copies = append(copies, Candidate{Account: fmt.Sprint("copy-", i), SecretKey: fmt.Sprint("a guess ", i)})
	}
	owner := Candidate{Account: "owner", Name: "owner/caller", SecretKey: testKey}
	for _, tc := range []struct {
		name       string
		candidates []Candidate
		want       bool
	}{
		{"alone", []Candidate{owner}, true},
		{"the first", append([]Candidate{owner}, copies[:15]...), true},
		{"the last that counts", append(copies[:15:15], owner), true},
		{"one beyond", append(copies[:16:16], owner), false},
		{"none", nil, false},
	} {
		for _, version := range []Version{V2, V3} {
			t.Run(fmt.Sprint(tc.name, " ", version), func(t *testing.T) {
				var asked accounts
				v := verifierOf(pairs{testID: tc.candidates}, Options{Limiter: &asked})
				r := signedForm("POST", V2, createParams())
				if version == V3 {
					r = signedJSON(t, "CreateTask", createBody)
				}
				call, err := Read(version, r)
				if err != nil {
					t.Fatal(err)
				}
				caller, err := v.Verify(call)
				if got := err == nil; got != tc.want {
					t.Fatalf("accepted: %v (%v), want %v", got, err, tc.want)
				}
				if tc.want && (caller.Account != "owner" || len(asked) != 1 || asked[0] != "owner") {
					t.Errorf("the caller is %q, and %q were asked for their rate", caller.Account, asked)
				}
			})
		}
	}
}

// Another account's calls with the same SecretId use up no Nonce of this one.
func TestCandidatesHaveNoncesApart(t *testing.T) {
	v := verifierOf(pairs{testID: {{Account: "a", SecretKey: "otherkey"}, {Account: "b", SecretKey: testKey}}}, Options{MaxNonces: 1})
	other := common(map[string]string{"Action": "CancelTask", "id": "x", "Nonce": "1"})
	other["Signature"] = Sign("", "otherkey", StringToSign("GET", testHost, V2.Path(), other))
	if _, failure := answer(t, v, V2, form("GET", V2, other)); failure != "" {
		t.Fatal(failure)
	}
	wantVerified(t, v, testTime, "1")
	wantRefused(t, v, testTime, "1", KindReplay)
}

// A call that two accounts may have signed is nobody's: the log names both, the answer neither.
func TestEqualKeys(t *testing.T) {
	v := verifierOf(pairs{testID: {
		{Account: "one", Name: "one/secret", SecretKey: testKey},
		{Account: "two", Name: "two/secret", SecretKey: "another"},
		{Account: "three", Name: "three/secret", SecretKey: testKey + "\x00"}, // the same key to an HMAC
	}}, Options{})
	call, err := Read(V2, signedForm("POST", V2, createParams()))
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(call)
	if err == nil {
		t.Fatal("accepted")
	}
	if e := AsError(err); e.Kind != KindSignatureFailure || !strings.Contains(e.Error(), "one/secret") || !strings.Contains(e.Error(), "three/secret") || strings.Contains(e.Error(), "two/secret") {
		t.Errorf("the log says %v", e)
	}
	if told := AsError(err).Message(V2); strings.Contains(told, "three") || strings.Contains(told, "one/") {
		t.Errorf("the caller is told %q", told)
	}
}

// What a call costs that nobody signed is bounded, however long it is and however many forms
// its names have; and a long one of somebody who has the key is not refused for that.
func TestEffortIsBounded(t *testing.T) {
	var candidates []Candidate
	for i := range 16 {
		candidates = append(candidates, Candidate{Account: fmt.Sprint(i), SecretKey: fmt.Sprint(i)})
	}
	params := createParams()
	params["tasks"] = `{"updateShadowTask":{"desired":"` + strings.Repeat("x", 200<<10) + `"}}`
	params["_a_b"], params["f"] = "c", "@d"
	params["Signature"] = "none"
	call, err := Read(V2, form(http.MethodPost, V2, params))
	if err != nil {
		t.Fatal(err)
	}
	hashed := 0
	for f := range call.forms(DefaultHosts(), nil) {
		hashed += f.bytes * len(candidates)
	}
	if hashed <= maxEffort {
		t.Fatalf("this call would cost %d bytes, which is no test", hashed)
	}
	effort := maxEffort
	tried := 0
	_, err = match(func(yield func(variant) bool) {
		for f := range call.forms(DefaultHosts(), nil) {
			f.by = func(string) bool { tried += f.bytes; return false }
			if !yield(f) {
				return
			}
		}
	}, candidates, &effort)
	if tried > maxEffort || err == nil || !strings.Contains(AsError(err).Error(), "gave up") {
		t.Errorf("%d bytes were hashed, and the error is %v", tried, err)
	}

	candidates = candidates[:1]
	candidates[0].SecretKey = testKey
	delete(params, "Signature")
	v := verifierOf(pairs{testID: candidates}, Options{})
	if _, failure := answer(t, v, V2, signedForm(http.MethodPost, V2, params)); failure != "" {
		t.Errorf("a long call is refused: %s", failure)
	}
}

// A signature of another change is a replay; an equal call that changes something is answered
// as the first was, or refused; one that changes nothing is carried out.
func TestReplayTC3(t *testing.T) {
	verify := func(t *testing.T, v *Verifier, action, body string) (Caller, error) {
		t.Helper()
		call, err := Read(V3, signedJSON(t, action, body))
		if err != nil {
			t.Fatal(err)
		}
		return v.Verify(call)
	}
	first := func(t *testing.T, v *Verifier, action, body string) Caller {
		t.Helper()
		caller, err := verify(t, v, action, body)
		if err != nil || caller.Earlier != nil {
			t.Fatalf("the first %s: %+v, %v", action, caller, err)
		}
		return caller
	}
	t.Run("create", func(t *testing.T) {
		l := &limiter{left: 2}
		v, clock := newTestVerifier(Options{Limiter: l})
		caller := first(t, v, "CreateTask", createBody)
		again, err := verify(t, v, "CreateTask", createBody)
		if err != nil || again.Earlier == nil || again.Outcome != nil || l.left != 1 {
			t.Fatalf("the second: %+v, %v; the rate has %d left", again, err, l.left)
		}
		caller.Outcome.Settle(CreateTaskResult{TaskID: "5ad5aa513332ea4cb86e9ad5"}, nil)
		if result, err := again.Earlier.Wait(t.Context()); err != nil || result != (CreateTaskResult{TaskID: "5ad5aa513332ea4cb86e9ad5"}) {
			t.Errorf("the second is answered %v, %v", result, err)
		}
		first(t, v, "CreateTask", createBody+" ") // another body
		clock.SetTime(time.Unix(testTime+300, 0))
		if again, err := verify(t, v, "CreateTask", createBody); err != nil || again.Earlier == nil {
			t.Errorf("in the last second in which it counts: %+v, %v", again, err)
		}
	})
	t.Run("a refusal stands", func(t *testing.T) {
		v, _ := newTestVerifier(Options{})
		first(t, v, "CreateTask", createBody).Outcome.Settle(nil, &Error{Kind: KindLimitExceeded, Detail: strings.Repeat("x", 1000)})
		again, err := verify(t, v, "CreateTask", createBody)
		if err != nil || again.Earlier == nil {
			t.Fatalf("the second: %+v, %v", again, err)
		}
		if _, err := again.Earlier.Wait(t.Context()); AsError(err).Kind != KindLimitExceeded || len(AsError(err).Detail) > 128 {
			t.Errorf("the second is answered %v", err)
		}
	})
	for _, action := range []string{"UpdateDeviceShadow", "PublishMessage"} {
		t.Run(action, func(t *testing.T) {
			v, _ := newTestVerifier(Options{})
			first(t, v, action, "{}").Outcome.Settle(nil, nil)
			if _, err := verify(t, v, action, "{}"); err == nil || AsError(err).Kind != KindReplay {
				t.Errorf("the second: %v", err)
			}
		})
	}
	t.Run("reads", func(t *testing.T) {
		l := &limiter{left: 3}
		v, _ := newTestVerifier(Options{Limiter: l})
		for range 3 {
			first(t, v, "DescribeTask", `{"Id":"x"}`).Outcome.Settle(nil, nil)
		}
		if _, err := verify(t, v, "DescribeTask", `{"Id":"x"}`); err == nil || AsError(err).Kind != KindRateLimited {
			t.Errorf("a fourth within the rate of three: %v", err)
		}
	})
	t.Run("another action", func(t *testing.T) {
		v, _ := newTestVerifier(Options{})
		// A client may ask about a task and cancel it within a second: the bodies are equal.
		first(t, v, "DescribeTask", `{"Id":"x"}`).Outcome.Settle(nil, nil)
		first(t, v, "CancelTask", `{"Id":"x"}`).Outcome.Settle(CancelTaskResult{}, nil)
		first(t, v, "DescribeTask", `{"Id":"x"}`).Outcome.Settle(nil, nil)
		if again, err := verify(t, v, "CancelTask", `{"Id":"x"}`); err != nil || again.Earlier == nil {
			t.Errorf("CancelTask again: %+v, %v", again, err)
		}
		for _, action := range []string{"CreateTask", "UpdateDeviceShadow", "PublishMessage"} {
			if _, err := verify(t, v, action, `{"Id":"x"}`); err == nil || AsError(err).Kind != KindReplay {
				t.Errorf("%s with the signature of CancelTask: %v", action, err)
			}
		}
	})
	t.Run("the action must be signed", func(t *testing.T) {
		v, _ := newTestVerifier(Options{RequireSignedAction: true})
		if _, err := verify(t, v, "CreateTask", createBody); err == nil || !strings.Contains(err.Error(), "x-tc-action") {
			t.Errorf("one that is not: %v", err)
		}
	})
}
