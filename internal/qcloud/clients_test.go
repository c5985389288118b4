package qcloud

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What clients send that are not run in tests, with signatures that another program made as
// these clients make them.
func TestOtherClients(t *testing.T) {
	const (
		ruby  = "Action=DescribeTasks&Version=2018-06-14&Offset=0&Limit=10&Region=gz&SecretId=AKIDtest&Timestamp=1524000000&Nonce=11886&Language=zh-CN&RequestClient=SDK_RUBY_3.0.1005&SignatureMethod="
		under = "Action=CreateTask&taskType=UpdateShadow&productID=ABCDE12345&deviceNameFilter=door%24&scheduleTimeInSeconds=0&tasks_updateShadowTask_desired=%7B%22state%22%3A%22open%22%7D&Region=gz&SecretId=AKIDtest&Timestamp=1524000000&Nonce=11886&Signature="
	)
	page := &ListTasks{Limit: 10}
	for _, tc := range []struct {
		name, method string
		version      Version
		form         string
		want         Request
	}{
		// Base64 with a line end.
		{"Ruby, GET, SHA1", "GET", V3, ruby + "HmacSHA1&Signature=lpu1SWefn%2FEedoipj9xmpyC1zxw%3D%0A", page},
		{"Ruby, POST, SHA1", "POST", V3, ruby + "HmacSHA1&Signature=niVFSH6RZKQpSmabE29s45nLGUk%3D%0A", page},
		{"Ruby, GET, SHA256", "GET", V3, ruby + "HmacSHA256&Signature=pawRw0podkV7w4g03QmHjBWJQ49ISKm2hfQtswtI53M%3D%0A", page},
		{"Ruby, POST, SHA256", "POST", V3, ruby + "HmacSHA256&Signature=sERp%2Fs2rBneqv%2BNncapuPBP%2BSM5ZtyGhX%2BXBmlgg%2FoU%3D%0A", page},
		// Names with "_", which are signed with ".", or as they are.
		{"underscores, signed as dots", "POST", V2, under + "pOms9M0NA3eODRecwRsXVDtGqgQ%3D", createRequest},
		{"underscores, signed as sent", "POST", V2, under + "W8bc%2B1lJiXatQkcvLYDBM1PS3AA%3D", createRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request(tc.method, tc.version, tc.form, "", nil)
			if tc.method == http.MethodPost {
				r = request(tc.method, tc.version, "", "application/x-www-form-urlencoded", strings.NewReader(tc.form))
			}
			v, _ := newTestVerifier(Options{})
			got, failure := answer(t, v, tc.version, r)
			if diff := cmp.Diff(tc.want, got); failure != "" || diff != "" {
				t.Errorf("refused %q; request (-want +got):\n%s", failure, diff)
			}
		})
	}
	// The clients for Java and Node.js sign the first label of the endpoint as the service.
	for _, tc := range []struct{ host, service, contentType, signature string }{
		{"127.0.0.1:8080", "127", "application/json; charset=utf-8", "58239a74f9863190b099b01c9bcb70eaf36f26dc009fc8687af904def8b2b197"},
		{"batchtask-shim.batchtask-system.svc", "batchtask-shim", "application/json; charset=utf-8", "8a1366689055e561986c30b8989f839493b7f62e7a24a725512e2606b5637908"},
		{"localhost:8443", "localhost:8443", "application/json", "2d685035fd4100dc2fceb54fd3575dc84240d2ae06e4e59fa638fbefa8385b49"},
	} {
		t.Run("TC3, service "+tc.service, func(t *testing.T) {
			r := request(http.MethodPost, V3, "", tc.contentType, strings.NewReader(`{"Id":"5ad5aa513332ea4cb86e9ad5"}`))
			r.Host = tc.host
			r.Header.Set("X-TC-Action", "DescribeTask")
			r.Header.Set("X-TC-Version", VersionV3)
			r.Header.Set("X-TC-Timestamp", "1524000000")
			r.Header.Set("Authorization", "TC3-HMAC-SHA256 Credential=AKIDtest/2018-04-17/"+tc.service+"/tc3_request, SignedHeaders=content-type;host, Signature="+tc.signature)
			v, _ := newTestVerifier(Options{})
			got, failure := answer(t, v, V3, r)
			if diff := cmp.Diff(Request(&DescribeTask{ID: "5ad5aa513332ea4cb86e9ad5"}), got); failure != "" || diff != "" {
				t.Errorf("refused %q; request (-want +got):\n%s", failure, diff)
			}
		})
	}
}

// A name with "_" and the same with "." are one parameter: given twice it is refused, and one
// that begins with "@", which some clients do not sign, is not trusted in either spelling.
func TestUnderscoresAreDots(t *testing.T) {
	params := createParams()
	delete(params, "tasks")
	params["tasks_updateShadowTask_desired"], params["tasks.updateShadowTask.desired"] = "{}", `{"a":1}`
	v, _ := newTestVerifier(Options{})
	_, failure := answer(t, v, V2, signedForm("POST", V2, params))
	if !strings.Contains(failure, "10101") || !strings.Contains(failure, "is given twice") {
		t.Errorf("both spellings: %s", failure)
	}

	params = createParams()
	delete(params, "tasks")
	params["Signature"] = Sign("", testKey, StringToSign("POST", testHost, V2.Path(), params))
	params["tasks_updateShadowTask_desired"] = "@{}"
	if _, failure = answer(t, v, V2, form("POST", V2, params)); !strings.Contains(failure, "4100") {
		t.Errorf("a part of tasks that is not signed: %s", failure)
	}
}

// The client for Python since 3.0.995 looks for an error only in what is exactly
// application/json.
func TestContentTypeOfAnswers(t *testing.T) {
	for version, want := range map[Version]string{V3: "application/json", V2: "application/json; charset=utf-8"} {
		good, bad := httptest.NewRecorder(), httptest.NewRecorder()
		if err := WriteResult(good, version, "id", CancelTaskResult{}); err != nil {
			t.Fatal(err)
		}
		if err := WriteError(bad, version, "id", &Error{Kind: KindLimitExceeded}); err != nil {
			t.Fatal(err)
		}
		for _, w := range []*httptest.ResponseRecorder{good, bad} {
			if got := w.Header().Get("Content-Type"); got != want {
				t.Errorf("%s: Content-Type %q, want %q", version, got, want)
			}
		}
	}
}

// A body of many tiny values is refused before they are made.
func TestManyNodes(t *testing.T) {
	many := func(n int) string {
		return `{"Id":"x","Unknown":[` + strings.TrimSuffix(strings.Repeat(`{"":0},`, n), ",") + "]}"
	}
	v, _ := newTestVerifier(Options{})
	if _, failure := answer(t, v, V3, signedJSON(t, "DescribeTask", many(500))); failure != "" {
		t.Errorf("some values: %s", failure)
	}
	body := many(35_000)
	if len(body) > MaxBytes {
		t.Fatal("too long to be a test of this")
	}
	allocations := testing.AllocsPerRun(1, func() {
		if _, err := parseObject([]byte(body)); err == nil || !strings.Contains(err.Error(), fmt.Sprint("at most ", maxNodes, " values")) {
			t.Errorf("many values: %v", err)
		}
	})
	if allocations > 20*maxNodes {
		t.Errorf("%v allocations to refuse it", allocations)
	}
}
