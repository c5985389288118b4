package qcloud

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	testingclock "k8s.io/utils/clock/testing"
)

// The example of the documents on TC3-HMAC-SHA256.
func TestTC3Example(t *testing.T) {
	const body = `{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}`
	r := httptest.NewRequest(http.MethodPost, "https://cvm.tencentcloudapi.com/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("X-TC-Action", "DescribeInstances")
	r.Header.Set("X-TC-Version", "2017-03-12")
	r.Header.Set("X-TC-Timestamp", "1551113065")
	const id, key = "AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE", "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE"
	if err := AuthorizeTC3(r, []byte(body), "cvm", id, key); err != nil {
		t.Fatal(err)
	}
	want := "TC3-HMAC-SHA256 Credential=" + id + "/2019-02-25/cvm/tc3_request, SignedHeaders=content-type;host, " +
		"Signature=72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"
	if diff := cmp.Diff(want, r.Header.Get("Authorization")); diff != "" {
		t.Fatalf("Authorization (-want +got):\n%s", diff)
	}
	call, err := Read(V3, r)
	if err != nil {
		t.Fatal(err)
	}
	clock := testingclock.NewFakePassiveClock(time.Unix(1551113065, 0))
	caller, err := NewVerifier(keys{id: key}, clock, Options{}).Verify(call)
	caller.Outcome = nil
	if diff := cmp.Diff(Caller{SecretID: id, Account: "account-of-" + id}, caller); diff != "" || err != nil {
		t.Errorf("Verify: %v; caller (-want +got):\n%s", err, diff)
	}
}

// What version 1.0.162 of the client for Go sends, recorded with its own
// signatures.
func TestRecordedGoClient(t *testing.T) {
	const query = "DeviceNameFilter=%5Edoor&ProductId=ABCDE12345&ScheduleTimeInSeconds=0&TaskType=PublishMessage&Tasks.PublishMessageTask.Payload=%40clo+se&Tasks.PublishMessageTask.Topic=event"
	const tc3 = "TC3-HMAC-SHA256 Credential=AKIDtest/2026-11-22/iotcloud/tc3_request, SignedHeaders=content-type;host, Signature="
	want := &CreateTask{
		TaskType: "PublishMessage", ProductID: "ABCDE12345", DeviceNameFilter: "^door",
		PublishMessage: &PublishMessage{Topic: "event", Payload: "@clo se"},
	}
	for _, tc := range []struct{ name, method, query, contentType, authorization, body string }{
		{
			"POST, TC3", "POST", "", "application/json", tc3 + "362c26a3ea704b7b604f980c5e814825227d1af7789276d99d5e22c54746ba12",
			`{"TaskType":"PublishMessage","ProductId":"ABCDE12345","DeviceNameFilter":"^door","ScheduleTimeInSeconds":0,"Tasks":{"PublishMessageTask":{"Topic":"event","Payload":"@clo se"}}}`,
		},
		{"GET, TC3", "GET", query, "application/x-www-form-urlencoded", tc3 + "bc2805dd78570d59fc0a5606a205afcacd8f6837d6e0312f056e3c3251b0250b", ""},
		{
			"POST, SHA256", "POST", "", "application/x-www-form-urlencoded", "",
			"Action=CreateTask&DeviceNameFilter=%5Edoor&Language=zh-CN&Nonce=5908609003117026455&ProductId=ABCDE12345&Region=ap-guangzhou&RequestClient=SDK_GO_1.0.162&ScheduleTimeInSeconds=0&SecretId=AKIDtest&Signature=Vx3iZKGeRfk0oXjenYZgdEBgQ107%2FiCOL9LO9Mp4Cg4%3D&SignatureMethod=HmacSHA256&TaskType=PublishMessage&Tasks.PublishMessageTask.Payload=%40clo+se&Tasks.PublishMessageTask.Topic=event&Timestamp=1795380997&Version=2018-06-14",
		},
		{
			"GET, SHA1", "GET",
			"Action=CreateTask&DeviceNameFilter=%5Edoor&Language=zh-CN&Nonce=5740737892872763123&ProductId=ABCDE12345&Region=ap-guangzhou&RequestClient=SDK_GO_1.0.162&ScheduleTimeInSeconds=0&SecretId=AKIDtest&Signature=9xWNIBM9OYbDQs3Uk5YSjlFEOUc%3D&SignatureMethod=HmacSHA1&TaskType=PublishMessage&Tasks.PublishMessageTask.Payload=%40clo+se&Tasks.PublishMessageTask.Topic=event&Timestamp=1795380997&Version=2018-06-14",
			"", "", "",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request(tc.method, V3, tc.query, tc.contentType, strings.NewReader(tc.body))
			if tc.authorization != "" {
				r.Header.Set("Authorization", tc.authorization)
				r.Header.Set("X-TC-Action", "CreateTask")
				r.Header.Set("X-TC-Version", "2018-06-14")
				r.Header.Set("X-TC-Timestamp", "1795380997")
			}
			v, clock := newTestVerifier(Options{})
			clock.SetTime(time.Unix(1795380997, 0))
			got, failure := answer(t, v, V3, r)
			if failure != "" {
				t.Fatalf("refused: %s", failure)
			}
			if diff := cmp.Diff(Request(want), got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// The documents' newer example signs X-TC-Action too, in lower case.
func TestTC3SignedHeaders(t *testing.T) {
	for _, tc := range []struct {
		name      string
		canonical string
		headers   string
		want      bool
	}{
		{"as sent", "content-type:application/json\nhost:127.0.0.1:8080\nx-tc-action:DescribeTask\n", "content-type;host;x-tc-action", true},
		{"in lower case", "content-type:application/json\nhost:127.0.0.1:8080\nx-tc-action:describetask\n", "content-type;host;x-tc-action", true},
		{"a host that it believes it calls", "content-type:application/json\nhost:iotcloud.tencentcloudapi.com\n", "content-type;host", true},
		{"another host", "content-type:application/json\nhost:example.org\n", "content-type;host", false},
		{"another action", "content-type:application/json\nhost:127.0.0.1:8080\nx-tc-action:CancelTask\n", "content-type;host;x-tc-action", false},
		{"a header that is not there", "content-type:application/json\nhost:127.0.0.1:8080\nx-other:\n", "content-type;host;x-other", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const body = `{"Id":"5ad5aa513332ea4cb86e9ad5"}`
			r := signedJSON(t, "DescribeTask", body)
			auth, err := parseAuthorization(r.Header.Get("Authorization"))
			if err != nil {
				t.Fatal(err)
			}
			bodyHash := sha256.Sum256([]byte(body))
			signature := auth.sign(testKey, testTime, "POST\n/\n\n"+tc.canonical+"\n"+tc.headers+"\n"+hex.EncodeToString(bodyHash[:]))
			r.Header.Set("Authorization", "TC3-HMAC-SHA256 Credential=AKIDtest/2018-04-17/iotcloud/tc3_request, SignedHeaders="+tc.headers+", Signature="+signature)
			v, _ := newTestVerifier(Options{})
			_, failure := answer(t, v, V3, r)
			if got := failure == ""; got != tc.want {
				t.Errorf("accepted: %v (%s), want %v", got, failure, tc.want)
			}
		})
	}
}

func TestParseAuthorization(t *testing.T) {
	const signature = "72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"
	good := authorization{
		secretID: "ID", date: "2019-02-25", service: "cvm",
		signedHeaders: []string{"content-type", "host"}, signature: signature,
	}
	const credential, headers = "Credential=ID/2019-02-25/cvm/tc3_request", "SignedHeaders=content-type;host"
	for _, tc := range []struct {
		name, header string
		want         *authorization
	}{
		{"good", "TC3-HMAC-SHA256 " + credential + ", " + headers + ", Signature=" + signature, &good},
		{"without spaces", "TC3-HMAC-SHA256 " + credential + "," + headers + ",Signature=" + signature, &good},
		{"in another order", "TC3-HMAC-SHA256 Signature=" + signature + ", " + headers + ", " + credential, &good},
		{"empty", "", nil},
		{"the algorithm alone", "TC3-HMAC-SHA256", nil},
		{"another algorithm", "TC3-HMAC-SHA512 " + credential + ", " + headers + ", Signature=" + signature, nil},
		{"no credential", "TC3-HMAC-SHA256 " + headers + ", Signature=" + signature, nil},
		{"two credentials", "TC3-HMAC-SHA256 " + credential + ", " + credential + ", " + headers + ", Signature=" + signature, nil},
		{"something more", "TC3-HMAC-SHA256 " + credential + ", " + headers + ", Signature=" + signature + ", A=b", nil},
		{"a comma at the end", "TC3-HMAC-SHA256 " + credential + ", " + headers + ", Signature=" + signature + ",", nil},
		{"a scope with a part less", "TC3-HMAC-SHA256 Credential=ID/2019-02-25/tc3_request, " + headers + ", Signature=" + signature, nil},
		{"a scope with a part more", "TC3-HMAC-SHA256 Credential=ID/a/2019-02-25/cvm/tc3_request, " + headers + ", Signature=" + signature, nil},
		{"a scope with an empty part", "TC3-HMAC-SHA256 Credential=/2019-02-25/cvm/tc3_request, " + headers + ", Signature=" + signature, nil},
		{"another end of the scope", "TC3-HMAC-SHA256 Credential=ID/2019-02-25/cvm/tc2_request, " + headers + ", Signature=" + signature, nil},
		{"content-type not signed", "TC3-HMAC-SHA256 " + credential + ", SignedHeaders=host, Signature=" + signature, nil},
		{"host not signed", "TC3-HMAC-SHA256 " + credential + ", SignedHeaders=content-type, Signature=" + signature, nil},
		{"a header twice", "TC3-HMAC-SHA256 " + credential + ", SignedHeaders=content-type;host;host, Signature=" + signature, nil},
		{"a header in upper case", "TC3-HMAC-SHA256 " + credential + ", SignedHeaders=content-type;host;X-TC-Action, Signature=" + signature, nil},
		{"an empty header", "TC3-HMAC-SHA256 " + credential + ", SignedHeaders=content-type;host;, Signature=" + signature, nil},
		{"many headers", "TC3-HMAC-SHA256 " + credential + ", SignedHeaders=content-type;host" + strings.Repeat(";a", 40) + ", Signature=" + signature, nil},
		{"no signature", "TC3-HMAC-SHA256 " + credential + ", " + headers, nil},
		{"a short signature", "TC3-HMAC-SHA256 " + credential + ", " + headers + ", Signature=72e4", nil},
		{"a signature in upper case", "TC3-HMAC-SHA256 " + credential + ", " + headers + ", Signature=" + strings.ToUpper(signature), nil},
		{"over-long", "TC3-HMAC-SHA256 Credential=" + strings.Repeat("I", 5000) + "/2019-02-25/cvm/tc3_request, " + headers + ", Signature=" + signature, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseAuthorization(tc.header)
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(authorization{})); diff != "" {
				t.Errorf("authorization (-want +got):\n%s", diff)
			}
			if err != nil && AsError(err).Kind != KindSignatureFailure {
				t.Errorf("error %v, want %v", err, KindSignatureFailure)
			}
		})
	}
}

// FuzzAuthorization checks that what is read can be written and read again, and
// that a header without the key's signature is never accepted.
func FuzzAuthorization(f *testing.F) {
	f.Add("TC3-HMAC-SHA256 Credential=AKIDtest/2018-04-17/iotcloud/tc3_request, SignedHeaders=content-type;host, Signature=72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168")
	f.Add("TC3-HMAC-SHA256 Credential=AKIDtest/2018-04-17/iotcloud/tc3_request,SignedHeaders=content-type;host;x-tc-action,Signature=" + strings.Repeat("0", 64))
	f.Add("TC3-HMAC-SHA256 Credential=, SignedHeaders=;, Signature=")
	f.Fuzz(func(t *testing.T, header string) {
		auth, err := parseAuthorization(header)
		if err != nil {
			if auth != nil || AsError(err).Kind != KindSignatureFailure {
				t.Fatalf("%q: %v with %v", header, auth, err)
			}
			return
		}
		written := algorithmTC3 + " Credential=" + strings.Join([]string{auth.secretID, auth.date, auth.service, terminatorTC3}, "/") +
			", SignedHeaders=" + strings.Join(auth.signedHeaders, ";") + ", Signature=" + auth.signature
		again, err := parseAuthorization(written)
		if err != nil {
			// A space that was trimmed, and the comma with one, may make it longer.
			if len(written) > maxTC3Header {
				return
			}
			t.Fatalf("%q, written %q: %v", header, written, err)
		}
		if diff := cmp.Diff(auth, again, cmp.AllowUnexported(authorization{})); diff != "" {
			t.Fatalf("%q (-first +again):\n%s", header, diff)
		}
		r := signedJSON(t, "DescribeTask", "{}")
		r.Header.Set("Authorization", header)
		call, err := Read(V3, r)
		if err != nil {
			return
		}
		v := NewVerifier(keys{auth.secretID: "a key that nothing was signed with"}, testingclock.NewFakePassiveClock(time.Unix(testTime, 0)), Options{})
		if _, err := v.Verify(call); err == nil {
			t.Fatalf("%q is accepted", header)
		}
	})
}
