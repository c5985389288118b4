package qcloud

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	testingclock "k8s.io/utils/clock/testing"
)

// The credentials and the time of all tests.
const (
	testID   = "AKIDtest"
	testKey  = "secretkey"
	testHost = "iotcloud.api.qcloud.com"
	testTime = 1524000000
)

type keys map[string]string

func (k keys) Lookup(secretID string) []Candidate {
	key, ok := k[secretID]
	if !ok {
		return nil
	}
	return []Candidate{{Account: "account-of-" + secretID, SecretKey: key}}
}

func newTestVerifier(options Options) (*Verifier, *testingclock.FakePassiveClock) {
	clock := testingclock.NewFakePassiveClock(time.Unix(testTime, 0))
	return NewVerifier(keys{testID: testKey, "AKIDother": "otherkey"}, clock, options), clock
}

// answer does with a request what a server does, and returns what the action asks
// for, or the body that the caller reads.
func answer(t *testing.T, v *Verifier, version Version, r *http.Request) (Request, string) {
	t.Helper()
	action := ""
	request, err := func() (Request, error) {
		call, err := Read(version, r)
		if err != nil {
			return nil, err
		}
		action = call.Action
		if _, err := v.Verify(call); err != nil {
			return nil, err
		}
		return call.Decode()
	}()
	if err == nil {
		return request, ""
	}
	w := httptest.NewRecorder()
	if err := WriteError(w, version, "b5b41468-520d-4192-b42f-595cc34b6c1c", AsError(err).In(action)); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusOK {
		t.Errorf("HTTP status %d, want 200", w.Code)
	}
	return nil, strings.TrimSpace(w.Body.String())
}

// wantAnswer compares bodies as JSON.
func wantAnswer(t *testing.T, got, want string) {
	t.Helper()
	var gotValue, wantValue any
	if err := json.Unmarshal([]byte(want), &wantValue); err != nil {
		t.Fatalf("wanted answer: %v", err)
	}
	if err := json.Unmarshal([]byte(got), &gotValue); err != nil {
		t.Fatalf("answer %q: %v", got, err)
	}
	if diff := cmp.Diff(wantValue, gotValue); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// common are the common parameters of a call by testID at testTime.
func common(params map[string]string) map[string]string {
	all := map[string]string{
		"Region": "gz", "SecretId": testID, "Timestamp": strconv.Itoa(testTime), "Nonce": "11886",
	}
	for name, value := range params {
		all[name] = value
	}
	return all
}

// createParams are the parameters of a good CreateTask in V2.
func createParams() map[string]string {
	return common(map[string]string{
		"Action": "CreateTask", "taskType": "UpdateShadow", "productID": "ABCDE12345",
		"deviceNameFilter": "door$", "scheduleTimeInSeconds": "0",
		"tasks": `{"updateShadowTask":{"desired":"{\"state\":\"open\"}"}}`,
	})
}

var createRequest = &CreateTask{
	TaskType: "UpdateShadow", ProductID: "ABCDE12345", DeviceNameFilter: "door$",
	UpdateShadow: &UpdateShadow{Desired: `{"state":"open"}`},
}

// form returns a request with these parameters, in the query of a GET or the
// urlencoded body of a POST.
func form(method string, version Version, params map[string]string) *http.Request {
	values := url.Values{}
	for name, value := range params {
		values.Set(name, value)
	}
	if method == http.MethodGet {
		return request(method, version, values.Encode(), "", nil)
	}
	return request(method, version, "", "application/x-www-form-urlencoded", strings.NewReader(values.Encode()))
}

// signedForm also signs it, as the documents say.
func signedForm(method string, version Version, params map[string]string) *http.Request {
	text := StringToSign(method, testHost, version.Path(), params)
	params["Signature"] = Sign(params["SignatureMethod"], testKey, text)
	return form(method, version, params)
}

func request(method string, version Version, query, contentType string, body io.Reader) *http.Request {
	r := httptest.NewRequest(method, version.Path(), body)
	r.URL.RawQuery = query
	r.Host = "127.0.0.1:8080"
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

// signedJSON returns a request to V3 with a JSON body, signed with TC3.
func signedJSON(t testing.TB, action, body string) *http.Request {
	t.Helper()
	r := request(http.MethodPost, V3, "", "application/json", strings.NewReader(body))
	r.Header.Set("X-TC-Action", action)
	r.Header.Set("X-TC-Version", VersionV3)
	r.Header.Set("X-TC-Timestamp", strconv.Itoa(testTime))
	if err := AuthorizeTC3(r, []byte(body), DefaultService, testID, testKey); err != nil {
		t.Fatal(err)
	}
	return r
}
