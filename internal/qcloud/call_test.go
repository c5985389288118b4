package qcloud

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// failureV2JSON is the whole answer of V2.
func failureV2JSON(code int, desc, message string) string {
	return `{"code":` + strconv.Itoa(code) + `,"codeDesc":` + strconv.Quote(desc) + `,"message":` + strconv.Quote(message) + `}`
}

// Every call of V2 that cannot be carried out, and the answer to it: first what is
// wrong with common parameters, then with those of each action. All are signed
// after they were spoilt.
func TestBadParametersV2(t *testing.T) {
	missing := func(name string) string {
		return failureV2JSON(4000, "InvalidParameter", "（10101）请求参数非法: "+name+": is missing")
	}
	mistyped := func(name, detail string) string {
		return failureV2JSON(4000, "InvalidParameter", "（10101）请求参数非法: "+name+": "+detail)
	}
	illegal := func(name, detail string) string {
		return failureV2JSON(4000, "InvalidParameterValue", "（10002）参数非法: "+name+": "+detail)
	}
	list := common(map[string]string{"Action": "ListTasks", "pageNum": "1", "pageSize": "10"})
	describe := common(map[string]string{"Action": "DescribeTask", "id": "5ad5aa513332ea4cb86e9ad5"})
	cancel := common(map[string]string{"Action": "CancelTask", "id": "5ad5aa513332ea4cb86e9ad5"})
	message := createParams()
	message["taskType"] = "PublishMessage"
	message["tasks"] = `{"publishMessageTask":{"topic":"event","payload":"close"}}`

	for _, tc := range []struct {
		name   string
		of     map[string]string // nil: createParams
		spoil  map[string]string
		remove string
		want   string
	}{
		{name: "no Timestamp", remove: "Timestamp", want: missing("Timestamp")},
		{name: "Timestamp empty", spoil: map[string]string{"Timestamp": ""}, want: missing("Timestamp")},
		{name: "Timestamp no number", spoil: map[string]string{"Timestamp": "now"}, want: mistyped("Timestamp", "must be a number")},
		{name: "Timestamp negative", spoil: map[string]string{"Timestamp": "-1524000000"}, want: mistyped("Timestamp", "must be a number")},
		{name: "Timestamp too long", spoil: map[string]string{"Timestamp": "99999999999999999999"}, want: mistyped("Timestamp", "must be a number")},
		{name: "Timestamp old", spoil: map[string]string{"Timestamp": "1523999699"}, want: failureV2JSON(4200, "SignatureExpire", "the request has expired: Timestamp: must be within 300 seconds of the server's time, 1524000000")},
		{name: "Timestamp in the future", spoil: map[string]string{"Timestamp": "1524000301"}, want: failureV2JSON(4200, "SignatureExpire", "the request has expired: Timestamp: must be within 300 seconds of the server's time, 1524000000")},
		{name: "Timestamp in milliseconds", spoil: map[string]string{"Timestamp": "1524000000000"}, want: failureV2JSON(4200, "SignatureExpire", "the request has expired: Timestamp: must be within 300 seconds of the server's time, 1524000000")},
		{name: "Timestamp past any clock", spoil: map[string]string{"Timestamp": "9223372036854775807"}, want: failureV2JSON(4200, "SignatureExpire", "the request has expired: Timestamp: must be within 300 seconds of the server's time, 1524000000")},
		{name: "no Nonce", remove: "Nonce", want: missing("Nonce")},
		{name: "Nonce no number", spoil: map[string]string{"Nonce": "1.5"}, want: mistyped("Nonce", "must be a number")},
		{name: "Nonce negative", spoil: map[string]string{"Nonce": "-5"}, want: mistyped("Nonce", "must be a number")},
		{name: "no SecretId", remove: "SecretId", want: failureV2JSON(4100, "SignatureFailure", "authentication failed: SecretId: is missing")},
		{name: "SecretId not known", spoil: map[string]string{"SecretId": "AKIDnobody"}, want: failureV2JSON(4104, "SecretIdNotFound", "there is no such SecretId: SecretId: is not known")},
		{name: "SecretId of another key", spoil: map[string]string{"SecretId": "AKIDother"}, want: failureV2JSON(4100, "SignatureFailure", "authentication failed: the signature does not match")},
		{name: "SignatureMethod not known", spoil: map[string]string{"SignatureMethod": "HmacMD5"}, want: failureV2JSON(4100, "SignatureFailure", "authentication failed: SignatureMethod: must be HmacSHA1 or HmacSHA256")},
		{name: "Token", spoil: map[string]string{"Token": "t"}, want: failureV2JSON(4105, "TokenFailure", "tokens are not supported: Token: temporary credentials are not supported")},
		{name: "no Action", remove: "Action", want: missing("Action")},
		{name: "Action not known", spoil: map[string]string{"Action": "DeleteTask"}, want: failureV2JSON(4000, "InvalidAction", `there is no such action: Action: "DeleteTask" is none of this version's`)},
		{name: "Action of V3", spoil: map[string]string{"Action": "DescribeTasks"}, want: failureV2JSON(4000, "InvalidAction", `there is no such action: Action: "DescribeTasks" is none of this version's`)},
		{name: "Action in lower case", spoil: map[string]string{"Action": "createTask"}, want: failureV2JSON(4000, "InvalidAction", `there is no such action: Action: "createTask" is none of this version's`)},

		{name: "no taskType", remove: "taskType", want: missing("taskType")},
		{name: "taskType empty", spoil: map[string]string{"taskType": ""}, want: illegal("taskType", "must be UpdateShadow or PublishMessage")},
		{name: "taskType not known", spoil: map[string]string{"taskType": "updateShadow"}, want: illegal("taskType", "must be UpdateShadow or PublishMessage")},
		{name: "no productID", remove: "productID", want: missing("productID")},
		{name: "productId", remove: "productID", spoil: map[string]string{"productId": "ABCDE12345"}, want: missing("productID")},
		{name: "no deviceNameFilter", remove: "deviceNameFilter", want: missing("deviceNameFilter")},
		{name: "deviceNameFilter not UTF-8", spoil: map[string]string{"deviceNameFilter": "door\xff"}, want: mistyped("deviceNameFilter", "must be UTF-8")},
		{name: "no scheduleTimeInSeconds", remove: "scheduleTimeInSeconds", want: missing("scheduleTimeInSeconds")},
		{name: "scheduleTimeInSeconds empty", spoil: map[string]string{"scheduleTimeInSeconds": ""}, want: missing("scheduleTimeInSeconds")},
		{name: "scheduleTimeInSeconds a word", spoil: map[string]string{"scheduleTimeInSeconds": "now"}, want: mistyped("scheduleTimeInSeconds", "must be an integer")},
		{name: "scheduleTimeInSeconds a fraction", spoil: map[string]string{"scheduleTimeInSeconds": "1.5"}, want: mistyped("scheduleTimeInSeconds", "must be an integer")},
		{name: "scheduleTimeInSeconds with a space", spoil: map[string]string{"scheduleTimeInSeconds": " 0"}, want: mistyped("scheduleTimeInSeconds", "must be an integer")},
		{name: "scheduleTimeInSeconds in hexadecimal", spoil: map[string]string{"scheduleTimeInSeconds": "0x10"}, want: mistyped("scheduleTimeInSeconds", "must be an integer")},
		{name: "scheduleTimeInSeconds out of range", spoil: map[string]string{"scheduleTimeInSeconds": "9223372036854775808"}, want: illegal("scheduleTimeInSeconds", "is out of range")},
		{name: "maxExecutionTimeInSeconds a word", spoil: map[string]string{"maxExecutionTimeInSeconds": "long"}, want: mistyped("maxExecutionTimeInSeconds", "must be an integer")},
		{name: "maxExecutionTimeInSeconds out of range", spoil: map[string]string{"maxExecutionTimeInSeconds": "4294967296"}, want: illegal("maxExecutionTimeInSeconds", "is out of range")},
		{name: "no tasks", remove: "tasks", want: missing("tasks")},
		{name: "tasks empty", spoil: map[string]string{"tasks": ""}, want: mistyped("tasks", "must be a JSON object: unexpected end of JSON input")},
		{name: "tasks no JSON", spoil: map[string]string{"tasks": "{"}, want: mistyped("tasks", "must be a JSON object: unexpected end of JSON input")},
		{name: "tasks with something behind", spoil: map[string]string{"tasks": `{} {}`}, want: mistyped("tasks", "must be a JSON object: invalid character '{' after top-level value")},
		{name: "tasks null", spoil: map[string]string{"tasks": "null"}, want: mistyped("tasks", "must be a JSON object, it is null")},
		{name: "tasks an array", spoil: map[string]string{"tasks": "[]"}, want: mistyped("tasks", "must be a JSON object, it is an array")},
		{name: "tasks a string", spoil: map[string]string{"tasks": `"{}"`}, want: mistyped("tasks", "must be a JSON object, it is a string")},
		{name: "tasks with a key twice", spoil: map[string]string{"tasks": `{"updateShadowTask":{"desired":"{}","desired":"{}"}}`}, want: mistyped("tasks", `the key "desired" stands twice in one object`)},
		{name: "tasks too deep", spoil: map[string]string{"tasks": strings.Repeat(`{"a":`, 33) + "1" + strings.Repeat("}", 33)}, want: mistyped("tasks", "must be at most 32 levels deep")},
		{name: "tasks empty object", spoil: map[string]string{"tasks": "{}"}, want: missing("tasks.updateShadowTask")},
		{name: "the block of the other type", spoil: map[string]string{"tasks": message["tasks"]}, want: missing("tasks.updateShadowTask")},
		{name: "the block null", spoil: map[string]string{"tasks": `{"updateShadowTask":null}`}, want: missing("tasks.updateShadowTask")},
		{name: "the block a string", spoil: map[string]string{"tasks": `{"updateShadowTask":"{}"}`}, want: mistyped("tasks.updateShadowTask", "must be an object, it is a string")},
		{name: "keys in another case", spoil: map[string]string{"tasks": `{"UpdateShadowTask":{"desired":"{}"}}`}, want: missing("tasks.updateShadowTask")},
		{name: "no desired", spoil: map[string]string{"tasks": `{"updateShadowTask":{}}`}, want: missing("tasks.updateShadowTask.desired")},
		{name: "desired an object", spoil: map[string]string{"tasks": `{"updateShadowTask":{"desired":{"state":"open"}}}`}, want: mistyped("tasks.updateShadowTask.desired", "must be a string, it is an object")},
		{name: "desired a number", spoil: map[string]string{"tasks": `{"updateShadowTask":{"desired":1}}`}, want: mistyped("tasks.updateShadowTask.desired", "must be a string, it is a number")},
		{name: "desired half a character", spoil: map[string]string{"tasks": `{"updateShadowTask":{"desired":"{\"a\":\"\ud83d\"}"}}`}, want: mistyped("tasks", "a string holds half of a surrogate pair")},
		{name: "no topic", of: message, spoil: map[string]string{"tasks": `{"publishMessageTask":{"payload":"close"}}`}, want: missing("tasks.publishMessageTask.topic")},
		{name: "topic a boolean", of: message, spoil: map[string]string{"tasks": `{"publishMessageTask":{"topic":true,"payload":"close"}}`}, want: mistyped("tasks.publishMessageTask.topic", "must be a string, it is true or false")},
		{name: "no payload", of: message, spoil: map[string]string{"tasks": `{"publishMessageTask":{"topic":"event"}}`}, want: missing("tasks.publishMessageTask.payload")},
		{name: "payload an array", of: message, spoil: map[string]string{"tasks": `{"publishMessageTask":{"topic":"event","payload":[]}}`}, want: mistyped("tasks.publishMessageTask.payload", "must be a string, it is an array")},
		{name: "tasks whole and in parts", spoil: map[string]string{"tasks.updateShadowTask.desired": "{}"}, want: mistyped("tasks.updateShadowTask.desired", "a part of it is given as a whole as well")},
		{name: "a part whole and in parts", remove: "tasks", spoil: map[string]string{"tasks.updateShadowTask": "{}", "tasks.updateShadowTask.desired": "{}"}, want: mistyped("tasks.updateShadowTask.desired", "a part of it is given as a whole as well")},
		{name: "parts too deep", remove: "tasks", spoil: map[string]string{"tasks.updateShadowTask.desired.state": "open"}, want: mistyped("tasks.updateShadowTask.desired", "must be a string, it is an object")},

		{name: "describe: no id", of: describe, remove: "id", want: missing("id")},
		{name: "describe: id empty", of: describe, spoil: map[string]string{"id": ""}, want: mistyped("id", "is empty")},
		{name: "cancel: no id", of: cancel, remove: "id", want: missing("id")},
		{name: "list: no pageNum", of: list, remove: "pageNum", want: missing("pageNum")},
		{name: "list: pageNum a word", of: list, spoil: map[string]string{"pageNum": "first"}, want: mistyped("pageNum", "must be an integer")},
		{name: "list: pageNum 0", of: list, spoil: map[string]string{"pageNum": "0"}, want: illegal("pageNum", "must be 1 to 2147483647")},
		{name: "list: pageNum beyond any", of: list, spoil: map[string]string{"pageNum": "9223372036854775807"}, want: illegal("pageNum", "must be 1 to 2147483647")},
		{name: "list: no pageSize", of: list, remove: "pageSize", want: missing("pageSize")},
		{name: "list: pageSize 0", of: list, spoil: map[string]string{"pageSize": "0"}, want: illegal("pageSize", "must be 1 to 250")},
		{name: "list: pageSize 251", of: list, spoil: map[string]string{"pageSize": "251"}, want: illegal("pageSize", "must be 1 to 250")},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(tc.name+" "+method, func(t *testing.T) {
				params := maps.Clone(tc.of)
				if params == nil {
					params = createParams()
				}
				delete(params, tc.remove)
				maps.Copy(params, tc.spoil)
				v, _ := newTestVerifier(Options{})
				got, failure := answer(t, v, V2, signedForm(method, V2, params))
				if failure == "" {
					t.Fatalf("accepted: %+v", got)
				}
				wantAnswer(t, failure, tc.want)
			})
		}
	}
}

func TestUnsigned(t *testing.T) {
	for _, signature := range []string{"", "wrong", "NSI3UqqD99b/UJb4tbG/xZpRW64="} {
		for version, code := range map[Version]string{V2: `"code":4100`, V3: `"Code":"AuthFailure.SignatureFailure"`} {
			params := createParams()
			if signature != "" {
				params["Signature"] = signature
			}
			v, _ := newTestVerifier(Options{})
			_, failure := answer(t, v, version, form("POST", version, params))
			if !strings.Contains(failure, code) || strings.Contains(failure, "is missing") != (signature == "") {
				t.Errorf("%v with signature %q: %s", version, signature, failure)
			}
		}
	}
}

// What is wrong before any parameter can be understood.
func TestUnreadable(t *testing.T) {
	const urlencoded = "application/x-www-form-urlencoded"
	const parts = "multipart/form-data; boundary=b"
	for _, tc := range []struct {
		name, method, query, contentType string
		body                             io.Reader
		wantKind                         Kind
		wantParameter                    string
	}{
		{"PUT", "PUT", "", urlencoded, nil, KindUnsupportedProtocol, ""},
		{"HEAD", "HEAD", "", "", nil, KindUnsupportedProtocol, ""},
		{"OPTIONS", "OPTIONS", "", "", nil, KindUnsupportedProtocol, ""},
		{"JSON in V2", "POST", "", "application/json", strings.NewReader("{}"), KindUnsupportedProtocol, "Content-Type"},
		{"plain text", "POST", "", "text/plain", strings.NewReader("a=b"), KindUnsupportedProtocol, "Content-Type"},
		{"no type at all", "POST", "", ";;", strings.NewReader("a=b"), KindUnsupportedProtocol, "Content-Type"},
		{"a broken escape in a value", "POST", "", urlencoded, strings.NewReader("id=%zz"), KindInvalidParameter, "id"},
		{"a broken escape in a name", "GET", "%z=1", "", nil, KindBadRequest, ""},
		{"no name", "GET", "=1", "", nil, KindBadRequest, ""},
		{"an over-long name", "GET", strings.Repeat("n", 257) + "=1", "", nil, KindBadRequest, ""},
		{"a name that is not UTF-8", "GET", "%ff=1", "", nil, KindBadRequest, ""},
		{"a value that is not UTF-8", "GET", "id=%ff", "", nil, KindInvalidParameter, "id"},
		{"twice in the query", "GET", "id=1&id=1", "", nil, KindInvalidParameter, "id"},
		{"twice in the body", "POST", "", urlencoded, strings.NewReader("id=1&a=b&id=2"), KindInvalidParameter, "id"},
		{"in the query and in the body", "POST", "id=1", urlencoded, strings.NewReader("id=1"), KindInvalidParameter, "id"},
		{"twice, encoded in two ways", "GET", "id=1&%69d=1", "", nil, KindInvalidParameter, "id"},
		{"twice in parts", "POST", "", parts, strings.NewReader("--b\r\nContent-Disposition: form-data; name=id\r\n\r\n1\r\n--b\r\nContent-Disposition: form-data; name=id\r\n\r\n1\r\n--b--\r\n"), KindInvalidParameter, "id"},
		{"too many parameters", "GET", manyParams(MaxParameters + 1), "", nil, KindTooLarge, ""},
		{"too many parts", "POST", "", parts, strings.NewReader(strings.Repeat("--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n1\r\n", MaxParameters+1) + "--b--\r\n"), KindTooLarge, ""},
		{"a body too large", "POST", "", urlencoded, strings.NewReader("a=" + strings.Repeat("x", MaxBytes)), KindTooLarge, ""},
		{"a query too large", "GET", "a=" + strings.Repeat("x", MaxBytes), "", nil, KindTooLarge, ""},
		{"a body that the server cut", "POST", "", urlencoded, failingReader{&http.MaxBytesError{Limit: 1}}, KindTooLarge, ""},
		{"a body that ends early", "POST", "", urlencoded, failingReader{io.ErrUnexpectedEOF}, KindBadRequest, ""},
		{"no boundary", "POST", "", "multipart/form-data", strings.NewReader("--b--"), KindBadRequest, ""},
		{"parts that end early", "POST", "", parts, strings.NewReader("--b\r\nContent-Disposition: form-data; name=id\r\n\r\n1"), KindBadRequest, ""},
		{"a part without a name", "POST", "", parts, strings.NewReader("--b\r\n\r\n1\r\n--b--\r\n"), KindBadRequest, ""},
		{"a part that is not UTF-8", "POST", "", parts, strings.NewReader("--b\r\nContent-Disposition: form-data; name=id\r\n\r\n\xff\r\n--b--\r\n"), KindInvalidParameter, "id"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			call, err := Read(V2, request(tc.method, V2, tc.query, tc.contentType, tc.body))
			e, ok := errors.AsType[*Error](err)
			if !ok || call != nil {
				t.Fatalf("Read = %v, %v; want an *Error alone", call, err)
			}
			if e.Kind != tc.wantKind || e.Parameter != tc.wantParameter {
				t.Errorf("Read: %v (parameter %q), want %v (%q)", e, e.Parameter, tc.wantKind, tc.wantParameter)
			}
		})
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func manyParams(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("&p" + strconv.Itoa(i) + "=")
	}
	return b.String()
}

func TestMultipart(t *testing.T) {
	params := createParams()
	params["Signature"] = Sign("", testKey, StringToSign("POST", testHost, V2.Path(), params))
	// As the client for Java writes it: an empty line first, values as they are, and
	// a file, which it does not sign.
	var body strings.Builder
	for name, value := range params {
		body.WriteString("\r\n-----------------------------x\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value)
	}
	body.WriteString("\r\n-----------------------------x\r\nContent-Disposition: form-data; name=\"entityFile\"; filename=\"a.txt\"\r\nContent-Type:text/plain\r\n\r\nfile\xff")
	body.WriteString("\r\n-----------------------------x--\r\n")
	r := request("POST", V2, "", "multipart/form-data; boundary=---------------------------x", strings.NewReader(body.String()))
	v, _ := newTestVerifier(Options{})
	got, failure := answer(t, v, V2, r)
	if failure != "" {
		t.Fatalf("refused: %s", failure)
	}
	if diff := cmp.Diff(Request(createRequest), got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestReadTakesQueryAndBody(t *testing.T) {
	call, err := Read(V2, request("POST", V2, "Action=CancelTask&a=;&b", "application/x-www-form-urlencoded; charset=UTF-8",
		strings.NewReader("&id=%E7%8A%B6+x%2B&&SecretId=s=t&")))
	if err != nil {
		t.Fatal(err)
	}
	want := params{"Action": "CancelTask", "a": ";", "b": "", "id": "状 x+", "SecretId": "s=t"}
	if diff := cmp.Diff(want, call.params); diff != "" {
		t.Errorf("parameters (-want +got):\n%s", diff)
	}
	if !call.Known() || call.SecretID != "s=t" {
		t.Errorf("known %v, SecretID %q", call.Known(), call.SecretID)
	}
}

// The window is closed: 300 seconds off is in it.
func TestWindow(t *testing.T) {
	for _, tc := range []struct {
		ahead  time.Duration
		window time.Duration
		want   bool
	}{
		{-300 * time.Second, 0, true},
		{-301 * time.Second, 0, false},
		{300 * time.Second, 0, true},
		{301 * time.Second, 0, false},
		{-10 * time.Second, 10 * time.Second, true},
		{-11 * time.Second, 10 * time.Second, false},
	} {
		for _, version := range []Version{V2, V3} {
			t.Run(tc.ahead.String()+" "+version.String(), func(t *testing.T) {
				v, clock := newTestVerifier(Options{Window: tc.window})
				clock.SetTime(time.Unix(testTime, 0).Add(-tc.ahead))
				r := signedForm("GET", V2, createParams())
				if version == V3 {
					r = signedJSON(t, "DescribeTask", `{"Id":"x"}`)
				}
				_, failure := answer(t, v, version, r)
				if got := failure == ""; got != tc.want {
					t.Errorf("accepted: %v (%s), want %v", got, failure, tc.want)
				}
			})
		}
	}
}
