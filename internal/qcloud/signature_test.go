package qcloud

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The example of the documents on how to sign.
func TestSignExample(t *testing.T) {
	text := StringToSign("GET", "cvm.api.qcloud.com", "/v2/index.php", map[string]string{
		"Action": "DescribeInstances", "Nonce": "11886", "Region": "gz", "Timestamp": "1465185768",
		"SecretId": "AKIDz8krbsJ5yKBZQpn74WFkmLPx3gnPhESA", "instanceIds.0": "ins-09dx96dg", "limit": "20", "offset": "0",
		"Signature": "left out",
	})
	wantText := "GETcvm.api.qcloud.com/v2/index.php?Action=DescribeInstances&Nonce=11886&Region=gz&SecretId=AKIDz8krbsJ5yKBZQpn74WFkmLPx3gnPhESA&Timestamp=1465185768&instanceIds.0=ins-09dx96dg&limit=20&offset=0"
	if diff := cmp.Diff(wantText, text); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	if got, want := Sign(HmacSHA1, "Gu5t9xGARNpq86cd98joQYCN3Cozk1qA", text), "NSI3UqqD99b/UJb4tbG/xZpRW64="; got != want {
		t.Errorf("Sign = %s, want %s", got, want)
	}
}

// The two example requests of CreateTask, their bodies as they stand in the
// documents, with the common parameters that they leave to the reader.
func TestCreateTaskExamples(t *testing.T) {
	const (
		shadowBody  = `Action=CreateTask&taskType=UpdateShadow&deviceNameFilter=door$&scheduleTimeInSeconds=0&productID=ABCDE12345&tasks={"updateShadowTask":{"desired":"{\"state\":\"open\"}"}}&`
		messageBody = `Action=CreateTask&taskType=PublishMessage&deviceNameFilter=^door&scheduleTimeInSeconds=0&productID=ABCDE12345&tasks={"publishMessageTask":{"payload":"close", "topic":"event"}}&`
	)
	for _, tc := range []struct {
		name, body string
		tasks      string
		want       *CreateTask
	}{
		{"UpdateShadow", shadowBody, `{"updateShadowTask":{"desired":"{\"state\":\"open\"}"}}`, createRequest},
		{"PublishMessage", messageBody, `{"publishMessageTask":{"payload":"close", "topic":"event"}}`, &CreateTask{
			TaskType: "PublishMessage", ProductID: "ABCDE12345", DeviceNameFilter: "^door",
			PublishMessage: &PublishMessage{Topic: "event", Payload: "close"},
		}},
	} {
		for _, contentType := range []string{"", "application/x-www-form-urlencoded"} {
			t.Run(tc.name+" "+contentType, func(t *testing.T) {
				params := common(map[string]string{
					"Action": "CreateTask", "taskType": tc.want.TaskType, "deviceNameFilter": tc.want.DeviceNameFilter,
					"scheduleTimeInSeconds": "0", "productID": "ABCDE12345", "tasks": tc.tasks,
				})
				signature := Sign(HmacSHA1, testKey, StringToSign("POST", testHost, "/v2/index.php", params))
				// Not even the signature is encoded, so a "+" in it arrives as a space.
				body := tc.body + "Region=gz&SecretId=" + testID + "&Timestamp=1524000000&Nonce=11886&Signature=" + signature
				r := httptest.NewRequest(http.MethodPost, "/v2/index.php", strings.NewReader(body))
				r.Host = testHost
				r.Header.Set("Content-Type", contentType)

				v, _ := newTestVerifier(Options{})
				got, failure := answer(t, v, V2, r)
				if failure != "" {
					t.Fatalf("refused: %s", failure)
				}
				if diff := cmp.Diff(Request(tc.want), got); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// What version 0.2.1 of the client for Node.js sends, recorded with its own
// signatures.
func TestRecordedNodeClient(t *testing.T) {
	const head = "Region=gz&SecretId=AKIDtest&Timestamp=1524000000&Nonce=32768&RequestClient=SDK_NODEJS_0.2.1&"
	const create = head + "Action=CreateTask&taskType=UpdateShadow&productID=ABCDE12345&deviceNameFilter=door%24&scheduleTimeInSeconds=0&"
	for _, tc := range []struct {
		name, method string
		version      Version
		query        string
		want         Request
		wantAnswer   string
	}{
		{
			name: "tasks as a string", method: "POST", version: V2,
			query: create + "tasks=%7B%22updateShadowTask%22%3A%7B%22desired%22%3A%22%7B%5C%22state%5C%22%3A%5C%22open%5C%22%7D%22%7D%7D&Signature=F3qLDGDINmCo0NmBgsSwtMYtisI%3D",
			want:  createRequest,
		},
		{
			name: "tasks as an object", method: "POST", version: V2,
			query: create + "tasks.updateShadowTask.desired=%7B%22state%22%3A%22open%22%7D&Signature=nCo%2BxVEcFfopesA8QAxxdc5TnnU%3D",
			want:  createRequest,
		},
		{
			name: "GET, SHA256, not ASCII", method: "GET", version: V2,
			query: create + "tasks.updateShadowTask.desired=%7B%22%E7%8A%B6%E6%80%81%22%3A%22%E5%BC%80%20%2B%26%3D%22%7D&SignatureMethod=HmacSHA256&Signature=jaCIe6ET0I1B8N7Wh8RO8w74C9OrzLSxdEwTsawyQ94%3D",
			want: &CreateTask{
				TaskType: "UpdateShadow", ProductID: "ABCDE12345", DeviceNameFilter: "door$",
				UpdateShadow: &UpdateShadow{Desired: `{"状态":"开 +&="}`},
			},
		},
		{
			name: "underscores, a file that means nothing, undefined", method: "POST", version: V2,
			query: create + "tasks.updateShadowTask.desired=%7B%7D&user_tag_x=a&_trace_id=b&upload=%40%2Ftmp%2Ff&maxExecutionTimeInSeconds=&Signature=ls%2FqmmgP4ZAfhBK%2BqwevO08NiX8%3D",
			want: &CreateTask{
				TaskType: "UpdateShadow", ProductID: "ABCDE12345", DeviceNameFilter: "door$",
				UpdateShadow: &UpdateShadow{Desired: `{}`},
			},
		},
		{
			name: "a payload that is taken for a file", method: "POST", version: V2,
			query:      head + "Action=CreateTask&taskType=PublishMessage&productID=ABCDE12345&deviceNameFilter=door%24&scheduleTimeInSeconds=0&tasks.publishMessageTask.topic=event&tasks.publishMessageTask.payload=%40all&Signature=plVFOCZ7vVXmaujwYEZ2frXJD40%3D",
			wantAnswer: `{"code":4100,"codeDesc":"SignatureFailure","message":"authentication failed: tasks.publishMessageTask.payload: begins with \"@\" and is not signed by this client: send it with GET, or with another client"}`,
		},
		{
			name: "V3", method: "GET", version: V3,
			query: head + "Action=DescribeTasks&Version=2018-06-14&Offset=0&Limit=10&SignatureMethod=HmacSHA256&Signature=%2Bq1S%2F6G7hv2kWGHQKt%2F42WciT%2Bgu3adyH%2B2%2FOMw%2Bo%2B4%3D",
			want:  &ListTasks{Limit: 10},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request(tc.method, tc.version, "", "application/x-www-form-urlencoded", strings.NewReader(tc.query))
			if tc.method == http.MethodGet {
				r = request(tc.method, tc.version, tc.query, "", nil)
			}
			v, _ := newTestVerifier(Options{})
			got, failure := answer(t, v, tc.version, r)
			if tc.wantAnswer != "" {
				wantAnswer(t, failure, tc.wantAnswer)
				return
			}
			if failure != "" {
				t.Fatalf("refused: %s", failure)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// Every form of a signed text that some client makes, and what no client makes.
func TestSignatureForms(t *testing.T) {
	sign := func(text string) string { return Sign(HmacSHA1, testKey, text) }
	const rest = "Nonce=11886&Region=gz&SecretId=AKIDtest&Timestamp=1524000000"
	for _, tc := range []struct {
		name, method string
		version      Version
		extra        map[string]string
		signed       string
		hosts        []string
		want         bool
	}{
		{"the default host", "GET", V2, nil, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, true},
		{"the host of V3", "GET", V2, nil, "GETiotcloud.tencentcloudapi.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, true},
		{"the host of the request", "GET", V2, nil, "GET127.0.0.1:8080/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, true},
		{"the same without its port", "GET", V2, nil, "GET127.0.0.1/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, true},
		{"a configured host", "GET", V2, nil, "GETiot.example.org/v2/index.php?Action=CancelTask&" + rest + "&id=x", []string{"a.example.org", "iot.example.org"}, true},
		{"a default host that is not configured", "GET", V2, nil, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", []string{"iot.example.org"}, false},
		{"another host", "GET", V2, nil, "GETcvm.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, false},
		{"another method", "GET", V2, nil, "POSTiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, false},
		{"a method in lower case", "GET", V2, nil, "getiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, false},
		{"the path of V3 in V2", "GET", V2, nil, "GETiotcloud.api.qcloud.com/?Action=CancelTask&" + rest + "&id=x", nil, false},
		{"V3", "POST", V3, nil, "POSTiotcloud.tencentcloudapi.com/?Action=CancelTask&" + rest + "&id=x", nil, true},
		{"a parameter less", "GET", V2, nil, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest, nil, false},
		{"a parameter more", "GET", V2, nil, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x&limit=1", nil, false},
		{"another value", "GET", V2, nil, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=y", nil, false},
		{"dots", "GET", V2, map[string]string{"a_b_c": "1"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&a.b.c=1&id=x", nil, true},
		{"no dots", "GET", V2, map[string]string{"a_b_c": "1"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&a_b_c=1&id=x", nil, true},
		{"a leading underscore stays, and the others with it", "GET", V2, map[string]string{"_b_c": "1"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&_b_c=1&id=x", nil, true},
		{"a leading underscore stays alone", "GET", V2, map[string]string{"_b_c": "1"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&_b.c=1&id=x", nil, true},
		{"a leading underscore does not stay", "GET", V2, map[string]string{"_b_c": "1"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&.b.c=1&id=x", nil, true},
		{"sorted before the dots are made", "GET", V2, map[string]string{"a_b": "1", "aAb": "2"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&aAb=2&a.b=1&id=x", nil, true},
		{"some dots", "GET", V2, map[string]string{"a_b": "1", "c_d": "1"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&a.b=1&c_d=1&id=x", nil, false},
		{"a file left out", "POST", V2, map[string]string{"f": "@x"}, "POSTiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, true},
		{"a file signed", "POST", V2, map[string]string{"f": "@x"}, "POSTiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&f=@x&id=x", nil, true},
		{"a file left out, with dots in others", "POST", V2, map[string]string{"f": "@x", "a_b": "1"}, "POSTiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&a.b=1&id=x", nil, true},
		{"one of two files left out", "POST", V2, map[string]string{"f": "@x", "g": "@y"}, "POSTiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&g=@y&id=x", nil, false},
		{"a file left out of a GET", "GET", V2, map[string]string{"f": "@x"}, "GETiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, false},
		{"a file left out in V3", "POST", V3, map[string]string{"f": "@x"}, "POSTiotcloud.tencentcloudapi.com/?Action=CancelTask&" + rest + "&id=x", nil, false},
		{"a parameter of a task left out", "POST", V2, map[string]string{"maxExecutionTimeInSeconds": "@1"}, "POSTiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, false},
		{"a part of tasks left out", "POST", V2, map[string]string{"tasks.x": "@1"}, "POSTiotcloud.api.qcloud.com/v2/index.php?Action=CancelTask&" + rest + "&id=x", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			params := common(map[string]string{"Action": "CancelTask", "id": "x"})
			maps.Copy(params, tc.extra)
			params["Signature"] = sign(tc.signed)
			v, _ := newTestVerifier(Options{Hosts: tc.hosts})
			call, err := Read(tc.version, form(tc.method, tc.version, params))
			if err != nil {
				t.Fatal(err)
			}
			caller, err := v.Verify(call)
			if got := err == nil; got != tc.want {
				t.Fatalf("accepted: %v (%v), want %v", got, err, tc.want)
			}
			if err != nil {
				if kind := AsError(err).Kind; kind != KindSignatureFailure {
					t.Errorf("refused as %v, want %v", kind, KindSignatureFailure)
				}
				return
			}
			if diff := cmp.Diff(Caller{SecretID: testID, Account: "account-of-" + testID}, caller); diff != "" {
				t.Errorf("caller (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSignatureMethods(t *testing.T) {
	for _, tc := range []struct {
		name, method, signedWith string
		want                     bool
	}{
		{"none is SHA1", "", HmacSHA1, true},
		{"SHA1", HmacSHA1, HmacSHA1, true},
		{"SHA256", HmacSHA256, HmacSHA256, true},
		{"SHA1 where SHA256 was said", HmacSHA256, HmacSHA1, false},
		{"SHA256 where nothing was said", "", HmacSHA256, false},
		{"another", "HmacMD5", HmacSHA1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			params := createParams()
			params["SignatureMethod"] = tc.method
			params["Signature"] = Sign(tc.signedWith, testKey, StringToSign("POST", testHost, V2.Path(), params))
			v, _ := newTestVerifier(Options{})
			_, failure := answer(t, v, V2, form("POST", V2, params))
			if got := failure == ""; got != tc.want {
				t.Errorf("accepted: %v (%s), want %v", got, failure, tc.want)
			}
		})
	}
}

// FuzzStringToSign checks that a signature stands for its parameters: changing
// one byte of any makes it wrong.
func FuzzStringToSign(f *testing.F) {
	f.Add("POST", "user_tag_x", "a", "f", "@/tmp/f", uint(0))
	f.Add("GET", "_x_y", "1&2=3", "a.b", "状态 +%", uint(7))
	f.Add("POST", "a_b", "@", "a.b", "", uint(3))
	f.Fuzz(func(t *testing.T, method, name1, value1, name2, value2 string, at uint) {
		if method != http.MethodGet {
			method = http.MethodPost
		}
		params := params(common(map[string]string{"Action": "CancelTask", "id": "x"}))
		for name, value := range map[string]string{name1: value1, name2: value2} {
			// What no parser lets through, or is a parameter already, is no case.
			_ = params.add(name, value)
		}
		delete(params, "Signature")
		for _, write := range []func(string) string{dots, asSent, allDots, innerDots} {
			text := method + testHost + V2.Path() + "?" + signedParameters(params, write, nil)
			call := &Call{
				Version: V2, method: method, params: params,
				signature: Sign(HmacSHA1, testKey, text), signatureMethod: HmacSHA1,
			}
			if _, err := call.verifyForm([]Candidate{{SecretKey: testKey}}, []string{"other", testHost}); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if _, err := call.verifyForm([]Candidate{{SecretKey: "other"}}, []string{testHost}); err == nil {
				t.Fatalf("%q: accepted with another key", text)
			}
			for name, value := range params {
				if value == "" || strings.HasPrefix(value, "@") {
					continue
				}
				altered := maps.Clone(params)
				i := int(at % uint(len(value)))
				altered[name] = value[:i] + string(value[i]^1) + value[i+1:]
				call := *call
				call.params = altered
				if _, err := call.verifyForm([]Candidate{{SecretKey: testKey}}, []string{testHost}); err == nil {
					t.Fatalf("%q: accepted with %s=%q", text, name, altered[name])
				}
			}
		}
	})
}

// FuzzVerify sends arbitrary queries to a verifier that knows every SecretId. None
// is signed, so none may be accepted.
func FuzzVerify(f *testing.F) {
	f.Add("POST", "Action=CreateTask&SecretId=AKIDtest&Timestamp=1524000000&Nonce=1&Signature=NSI3UqqD99b/UJb4tbG/xZpRW64=")
	f.Add("GET", "SecretId=AKIDtest&Timestamp=1524000000&Nonce=1&Signature==&_=@&a_b=1&SignatureMethod=HmacSHA256")
	f.Fuzz(func(t *testing.T, method, query string) {
		v, _ := newTestVerifier(Options{})
		r := &http.Request{Method: method, URL: &url.URL{RawQuery: query}, Host: testHost, Body: http.NoBody}
		for _, version := range []Version{V2, V3} {
			call, err := Read(version, r)
			if err != nil {
				continue
			}
			call.SecretID = testID
			if _, err := v.Verify(call); err == nil {
				t.Fatalf("%s %q is accepted", method, query)
			}
		}
	})
}
