package qcloud

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func failureV3JSON(code, message string) string {
	return fmt.Sprintf(`{"Response":{"Error":{"Code":%q,"Message":%q},"RequestId":"b5b41468-520d-4192-b42f-595cc34b6c1c"}}`, code, message)
}

const createBody = `{"TaskType":"UpdateShadow","ProductId":"ABCDE12345","DeviceNameFilter":"door$","ScheduleTimeInSeconds":0,"Tasks":{"UpdateShadowTask":{"Desired":"{\"state\":\"open\"}"}}}`

func TestJSONBody(t *testing.T) {
	create := func(change func(*CreateTask)) *CreateTask {
		task := *createRequest
		change(&task)
		return &task
	}
	with := func(from, to string) string { return strings.Replace(createBody, from, to, 1) }
	for _, tc := range []struct {
		name, action, body string
		want               Request
		wantAnswer         string
	}{
		{"create", "CreateTask", createBody, createRequest, ""},
		{"numbers as texts", "CreateTask", with(`Seconds":0`, `Seconds":"1524000100","MaxExecutionTimeInSeconds":"60"`), create(func(c *CreateTask) {
			c.ScheduleTimeInSeconds, c.MaxExecutionTimeInSeconds = 1524000100, 60
		}), ""},
		{"numbers", "CreateTask", with(`Seconds":0`, `Seconds":1524000100,"MaxExecutionTimeInSeconds":60`), create(func(c *CreateTask) {
			c.ScheduleTimeInSeconds, c.MaxExecutionTimeInSeconds = 1524000100, 60
		}), ""},
		{"negative is for others to refuse", "CreateTask", with(`Seconds":0`, `Seconds":-1`), create(func(c *CreateTask) { c.ScheduleTimeInSeconds = -1 }), ""},
		{"null is nothing", "CreateTask", with(`Seconds":0`, `Seconds":0,"MaxExecutionTimeInSeconds":null`), createRequest, ""},
		{"something more", "CreateTask", with(`{"TaskType"`, `{"Language":"zh-CN","TaskType"`), createRequest, ""},
		{"the other block is ignored", "CreateTask", with(`"Tasks":{`, `"Tasks":{"PublishMessageTask":7,`), createRequest, ""},
		{"describe", "DescribeTask", `{"Id":"5ad5aa513332ea4cb86e9ad5"}`, &DescribeTask{ID: "5ad5aa513332ea4cb86e9ad5"}, ""},
		{"cancel", "CancelTask", `{"Id":"x"}`, &CancelTask{ID: "x"}, ""},
		{"list", "DescribeTasks", `{"Offset":20,"Limit":"250"}`, &ListTasks{Offset: 20, Limit: 250}, ""},

		{"no body", "CreateTask", "", nil, failureV3JSON("InvalidParameter", "the body: must be a JSON object: unexpected end of JSON input")},
		{"no JSON", "CreateTask", "{", nil, failureV3JSON("InvalidParameter", "the body: must be a JSON object: unexpected end of JSON input")},
		{"an array", "CreateTask", "[]", nil, failureV3JSON("InvalidParameter", "the body: must be a JSON object, it is an array")},
		{"not UTF-8", "CreateTask", "{\"a\":\"\xff\"}", nil, failureV3JSON("InvalidParameter", "the body: must be UTF-8")},
		{"a key twice", "CreateTask", `{"TaskType":"a","TaskType":"b"}`, nil, failureV3JSON("InvalidParameter", `the body: the key "TaskType" stands twice in one object`)},
		{"no TaskType", "CreateTask", with(`"TaskType"`, `"taskType"`), nil, failureV3JSON("MissingParameter", "TaskType: is missing")},
		{"TaskType a number", "CreateTask", with(`"UpdateShadow"`, `1`), nil, failureV3JSON("InvalidParameter", "TaskType: must be a string, it is a number")},
		{"TaskType not known", "CreateTask", with(`"UpdateShadow"`, `"Update"`), nil, failureV3JSON("InvalidParameterValue", "TaskType: must be UpdateShadow or PublishMessage")},
		{"no ProductId", "CreateTask", with(`"ProductId"`, `"ProductID"`), nil, failureV3JSON("MissingParameter", "ProductId: is missing")},
		{"no Desired", "CreateTask", with(`"Desired"`, `"desired"`), nil, failureV3JSON("MissingParameter", "Tasks.UpdateShadowTask.Desired: is missing")},
		{"Tasks a text", "CreateTask", with(`"Tasks":{`, `"Tasks":"x","x":{`), nil, failureV3JSON("InvalidParameter", "Tasks: must be an object, it is a string")},
		{"a fraction", "CreateTask", with(`Seconds":0`, `Seconds":1.0`), nil, failureV3JSON("InvalidParameter", "ScheduleTimeInSeconds: must be an integer")},
		{"a boolean", "CreateTask", with(`Seconds":0`, `Seconds":false`), nil, failureV3JSON("InvalidParameter", "ScheduleTimeInSeconds: must be an integer, it is true or false")},
		{"a huge number", "CreateTask", with(`Seconds":0`, `Seconds":99999999999999999999`), nil, failureV3JSON("InvalidParameterValue", "ScheduleTimeInSeconds: is out of range")},
		{"no Id", "DescribeTask", "{}", nil, failureV3JSON("MissingParameter", "Id: is missing")},
		{"Id empty", "CancelTask", `{"Id":""}`, nil, failureV3JSON("MissingParameter", "Id: is empty")},
		{"no Offset", "DescribeTasks", `{"Limit":1}`, nil, failureV3JSON("MissingParameter", "Offset: is missing")},
		{"Offset negative", "DescribeTasks", `{"Offset":-1,"Limit":1}`, nil, failureV3JSON("InvalidParameterValue", "Offset: must be 0 to 2147483647")},
		{"Limit too large", "DescribeTasks", `{"Offset":0,"Limit":251}`, nil, failureV3JSON("InvalidParameterValue", "Limit: must be 1 to 250")},
		{"an action of V2", "ListTasks", "{}", nil, failureV3JSON("InvalidAction", `Action: "ListTasks" is none of this version's`)},
		{"no action", "", "{}", nil, failureV3JSON("MissingParameter", "Action: is missing")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, _ := newTestVerifier(Options{})
			got, failure := answer(t, v, V3, signedJSON(t, tc.action, tc.body))
			if failure != "" || tc.wantAnswer != "" {
				wantAnswer(t, failure, tc.wantAnswer)
				return
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// What is wrong with a JSON call around its body.
func TestBadTC3(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(r *http.Request)
		want  string
	}{
		{"another body", func(r *http.Request) { r.Body = http.NoBody }, failureV3JSON("AuthFailure.SignatureFailure", "the signature does not match")},
		{"another query", func(r *http.Request) { r.URL.RawQuery = "a=b" }, failureV3JSON("AuthFailure.SignatureFailure", "the signature does not match")},
		{"another content type", func(r *http.Request) { r.Header.Set("Content-Type", "application/json;charset=utf-8") }, failureV3JSON("AuthFailure.SignatureFailure", "the signature does not match")},
		{"a form", func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, failureV3JSON("UnsupportedProtocol", "Content-Type: must be application/json with TC3-HMAC-SHA256")},
		{"a second of another timestamp", func(r *http.Request) { r.Header.Set("X-TC-Timestamp", "1524000001") }, failureV3JSON("AuthFailure.SignatureFailure", "the signature does not match")},
		{"the date of another timestamp", func(r *http.Request) { r.Header.Set("X-TC-Timestamp", "1524009600") }, failureV3JSON("AuthFailure.SignatureFailure", "Authorization: the date in Credential must be that of X-TC-Timestamp in UTC: 2018-04-18")},
		{"no timestamp", func(r *http.Request) { r.Header.Del("X-TC-Timestamp") }, failureV3JSON("MissingParameter", "X-TC-Timestamp: is missing")},
		{"a timestamp that is no number", func(r *http.Request) { r.Header.Set("X-TC-Timestamp", "now") }, failureV3JSON("InvalidParameter", "X-TC-Timestamp: must be a number")},
		{"no authorization", func(r *http.Request) { r.Header.Del("Authorization") }, failureV3JSON("AuthFailure.SignatureFailure", "Authorization: a JSON body needs the header Authorization: TC3-HMAC-SHA256 …")},
		{"a broken authorization", func(r *http.Request) { r.Header.Set("Authorization", "TC3-HMAC-SHA256") }, failureV3JSON("AuthFailure.SignatureFailure", `Authorization: must be "TC3-HMAC-SHA256" with Credential, SignedHeaders and Signature`)},
		{"another service", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "/iotcloud/", "/cvm/", 1))
		}, failureV3JSON("AuthFailure.SignatureFailure", "the signature does not match")},
		{"a SecretId that is not known", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), testID, "AKIDnobody", 1))
		}, failureV3JSON("AuthFailure.SecretIdNotFound", "SecretId: is not known")},
		{"a SecretId of another key", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), testID, "AKIDother", 1))
		}, failureV3JSON("AuthFailure.SignatureFailure", "the signature does not match")},
		{"a body that is not signed", func(r *http.Request) { r.Header.Set("X-TC-Content-SHA256", "UNSIGNED-PAYLOAD") }, failureV3JSON("AuthFailure.SignatureFailure", "X-TC-Content-SHA256: the body must be signed")},
		{"two actions", func(r *http.Request) { r.Header.Add("X-TC-Action", "CancelTask") }, failureV3JSON("InvalidParameter", "X-TC-Action: is given twice")},
		{"a token", func(r *http.Request) { r.Header.Set("X-TC-Token", "t") }, failureV3JSON("AuthFailure.TokenFailure", "Token: temporary credentials are not supported")},
		{"no version", func(r *http.Request) { r.Header.Del("X-TC-Version") }, failureV3JSON("MissingParameter", "Version: is missing: 2018-06-14")},
		{"another version", func(r *http.Request) { r.Header.Set("X-TC-Version", "2021-04-08") }, failureV3JSON("NoSuchVersion", "Version: must be 2018-06-14")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, _ := newTestVerifier(Options{})
			r := signedJSON(t, "CreateTask", createBody)
			tc.spoil(r)
			got, failure := answer(t, v, V3, r)
			if failure == "" {
				t.Fatalf("accepted: %+v", got)
			}
			wantAnswer(t, failure, tc.want)
		})
	}
}

func TestFormV3(t *testing.T) {
	const without = "without this parameter"
	params := func(extra map[string]string) map[string]string {
		params := common(map[string]string{
			"Action": "CreateTask", "Version": VersionV3, "TaskType": "UpdateShadow", "ProductId": "ABCDE12345",
			"DeviceNameFilter": "door$", "ScheduleTimeInSeconds": "0", "Tasks.UpdateShadowTask.Desired": `{"state":"open"}`,
		})
		maps.Copy(params, extra)
		maps.DeleteFunc(params, func(_, value string) bool { return value == without })
		return params
	}
	for _, tc := range []struct {
		name       string
		extra      map[string]string
		wantAnswer string
	}{
		{"good", nil, ""},
		{"Tasks as JSON", map[string]string{"Tasks": `{"UpdateShadowTask":{"Desired":"{}"}}`, "Tasks.UpdateShadowTask.Desired": without}, failureV3JSON("InvalidParameter", "Tasks: must be an object, it is a string")},
		{"no version", map[string]string{"Version": ""}, failureV3JSON("MissingParameter", "Version: is missing: 2018-06-14")},
		{"another version", map[string]string{"Version": "2017-03-12"}, failureV3JSON("NoSuchVersion", "Version: must be 2018-06-14")},
		{"a part whole and in parts", map[string]string{"Tasks": "{}"}, failureV3JSON("InvalidParameter", "Tasks.UpdateShadowTask.Desired: a part of it is given as a whole as well")},
		{"an unknown method", map[string]string{"SignatureMethod": "x"}, failureV3JSON("AuthFailure.SignatureFailure", "SignatureMethod: must be HmacSHA1 or HmacSHA256")},
		{"old", map[string]string{"Timestamp": "1523999699"}, failureV3JSON("AuthFailure.SignatureExpire", "Timestamp: must be within 300 seconds of the server's time, 1524000000")},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(tc.name+" "+method, func(t *testing.T) {
				v, _ := newTestVerifier(Options{})
				got, failure := answer(t, v, V3, signedForm(method, V3, params(tc.extra)))
				if failure != "" || tc.wantAnswer != "" {
					wantAnswer(t, failure, tc.wantAnswer)
					return
				}
				if diff := cmp.Diff(Request(createRequest), got); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestListPages(t *testing.T) {
	for _, tc := range []struct {
		num, size string
		want      ListTasks
	}{
		{"1", "1", ListTasks{0, 1}},
		{"1", "250", ListTasks{0, 250}},
		{"3", "20", ListTasks{40, 20}},
		{"2147483647", "250", ListTasks{2147483646 * 250, 250}},
	} {
		v, _ := newTestVerifier(Options{})
		got, failure := answer(t, v, V2, signedForm("GET", V2, common(map[string]string{"Action": "ListTasks", "pageNum": tc.num, "pageSize": tc.size})))
		if diff := cmp.Diff(Request(&tc.want), got); diff != "" {
			t.Errorf("page %s of %s: %s; request (-want +got):\n%s", tc.num, tc.size, failure, diff)
		}
	}
}

func TestParameterNames(t *testing.T) {
	for _, tc := range []struct{ v2, v3 string }{
		{"taskType", "TaskType"},
		{"productID", "ProductId"},
		{"tasks.publishMessageTask.topic", "Tasks.PublishMessageTask.Topic"},
		{"maxExecutionTimeInSeconds", "MaxExecutionTimeInSeconds"},
		{"id", "Id"},
		{"", ""},
		{"a..b", "A..B"},
	} {
		if got := V3.Parameter(tc.v2); got != tc.v3 {
			t.Errorf("V3.Parameter(%q) = %q, want %q", tc.v2, got, tc.v3)
		}
		if got := V2.Parameter(tc.v2); got != tc.v2 {
			t.Errorf("V2.Parameter(%q) = %q", tc.v2, got)
		}
	}
}
