package shim_test

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/test/system"
)

// Texts of the documents that messages begin with.
const (
	textInvalidValue = "（10002）参数非法: "
	textNoProduct    = "（10004）产品不存在: "
	textBadParameter = "（10101）请求参数非法: "
)

// badRequest is a CreateTask with one thing wrong. Of V2 the public code and the
// beginning of the message, of V3 the code and the beginning of the message.
type badRequest struct {
	name    string
	set     map[string]string // parameters that are other than good ones
	without string            // a parameter that is not there
	code    float64
	message string
}

// Each bad call is answered as documented, with HTTP 200, and makes nothing.
func TestBadRequests(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	now := time.Now().Unix()
	long := func(n int) string { return strings.Repeat("x", n) }
	one := func(name, value string) map[string]string { return map[string]string{name: value} }
	tasks := func(text string) map[string]string { return one("tasks", text) }
	shadow := func(text string) map[string]string {
		return map[string]string{"taskType": "UpdateShadow", "tasks": `{"updateShadowTask":{"desired":` + strconv.Quote(text) + `}}`}
	}
	message := func(topic, payload string) map[string]string {
		return tasks(fmt.Sprintf(`{"publishMessageTask":{"topic":%q,"payload":%q}}`, topic, payload))
	}
	rows := []badRequest{
		{"no Action", nil, "Action", 4000, textBadParameter + "Action: is missing"},
		{"empty Action", one("Action", ""), "", 4000, textBadParameter + "Action: is missing"},
		{"unknown Action", one("Action", "DropTask"), "", 4000, "there is no such action: Action"},
		{"Action in another case", one("Action", "createTask"), "", 4000, "there is no such action: Action"},
		{"an Action of V3", one("Action", "DescribeTasks"), "", 4000, "there is no such action: Action"},

		{"no taskType", nil, "taskType", 4000, textBadParameter + "taskType: is missing"},
		{"empty taskType", one("taskType", ""), "", 4000, textInvalidValue + "taskType: must be"},
		{"unknown taskType", one("taskType", "Reboot"), "", 4000, textInvalidValue + "taskType: must be"},
		{"taskType in another case", one("taskType", "publishMessage"), "", 4000, textInvalidValue + "taskType: must be"},

		{"no productID", nil, "productID", 4000, textBadParameter + "productID: is missing"},
		{"empty productID", one("productID", ""), "", 4000, textInvalidValue + "productID: "},
		{"illegal productID", one("productID", "ABC/DE"), "", 4000, textInvalidValue + "productID: "},
		{"long productID", one("productID", long(33)), "", 4000, textInvalidValue + "productID: "},
		{"unknown productID", one("productID", "NOSUCH1234"), "", 5000, textNoProduct + "productID: "},

		{"no deviceNameFilter", nil, "deviceNameFilter", 4000, textBadParameter + "deviceNameFilter: is missing"},
		{"empty deviceNameFilter", one("deviceNameFilter", ""), "", 4000, textInvalidValue + "deviceNameFilter: "},
		{"deviceNameFilter that is none", one("deviceNameFilter", "door("), "", 4000, textInvalidValue + "deviceNameFilter: "},
		{"deviceNameFilter with look-ahead", one("deviceNameFilter", "door(?=x)"), "", 4000, textInvalidValue + "deviceNameFilter: "},
		{"deviceNameFilter with too much repetition", one("deviceNameFilter", "(a{1000}){1000}"), "", 4000, textInvalidValue + "deviceNameFilter: "},
		{"long deviceNameFilter", one("deviceNameFilter", long(1025)), "", 4000, textInvalidValue + "deviceNameFilter: "},

		{"no scheduleTimeInSeconds", nil, "scheduleTimeInSeconds", 4000, textBadParameter + "scheduleTimeInSeconds: is missing"},
		{"empty scheduleTimeInSeconds", one("scheduleTimeInSeconds", ""), "", 4000, textBadParameter + "scheduleTimeInSeconds: is missing"},
		{"scheduleTimeInSeconds of words", one("scheduleTimeInSeconds", "now"), "", 4000, textBadParameter + "scheduleTimeInSeconds: must be an integer"},
		{"scheduleTimeInSeconds with a fraction", one("scheduleTimeInSeconds", "0.5"), "", 4000, textBadParameter + "scheduleTimeInSeconds: must be an integer"},
		{"negative scheduleTimeInSeconds", one("scheduleTimeInSeconds", "-1"), "", 4000, textInvalidValue + "scheduleTimeInSeconds: "},
		{"scheduleTimeInSeconds in the past", one("scheduleTimeInSeconds", fmt.Sprint(now-60)), "", 4000, textInvalidValue + "scheduleTimeInSeconds: "},
		{"scheduleTimeInSeconds beyond numbers", one("scheduleTimeInSeconds", "9223372036854775808"), "", 4000, textInvalidValue + "scheduleTimeInSeconds: is out of range"},

		{"maxExecutionTimeInSeconds of words", one("maxExecutionTimeInSeconds", "long"), "", 4000, textBadParameter + "maxExecutionTimeInSeconds: must be an integer"},
		{"negative maxExecutionTimeInSeconds", one("maxExecutionTimeInSeconds", "-1"), "", 4000, textInvalidValue + "maxExecutionTimeInSeconds: "},
		{"maxExecutionTimeInSeconds over a day", one("maxExecutionTimeInSeconds", "86401"), "", 4000, textInvalidValue + "maxExecutionTimeInSeconds: "},
		{"maxExecutionTimeInSeconds beyond numbers", one("maxExecutionTimeInSeconds", "4294967296"), "", 4000, textInvalidValue + "maxExecutionTimeInSeconds: is out of range"},

		{"no tasks", nil, "tasks", 4000, textBadParameter + "tasks: is missing"},
		{"empty tasks", tasks(""), "", 4000, textBadParameter + "tasks: must be a JSON object"},
		{"tasks of broken JSON", tasks(`{"publishMessageTask":`), "", 4000, textBadParameter + "tasks: must be a JSON object"},
		{"tasks with more behind", tasks(`{"publishMessageTask":{"topic":"event","payload":""}} x`), "", 4000, textBadParameter + "tasks: must be a JSON object"},
		{"tasks as an array", tasks(`[]`), "", 4000, textBadParameter + "tasks: must be a JSON object"},
		{"tasks as null", tasks(`null`), "", 4000, textBadParameter + "tasks: must be a JSON object"},
		{"tasks with a key twice", tasks(`{"publishMessageTask":{"topic":"event","topic":"x","payload":""}}`), "", 4000, textBadParameter + "tasks: the key"},
		{"tasks with half a character", tasks(`{"publishMessageTask":{"topic":"event","payload":"\ud800"}}`), "", 4000, textBadParameter + "tasks: a string holds half"},
		{"tasks that are too deep", tasks(strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)), "", 4000, textBadParameter + "tasks: must be at most"},
		{"tasks for the other taskType", tasks(`{"updateShadowTask":{"desired":"{}"}}`), "", 4000, textBadParameter + "tasks.publishMessageTask: is missing"},
		{"publishMessageTask as a string", tasks(`{"publishMessageTask":"close"}`), "", 4000, textBadParameter + "tasks.publishMessageTask: must be an object"},
		{"tasks as a whole and in parts", map[string]string{"tasks.publishMessageTask.topic": "event"}, "", 4000, textBadParameter + "tasks.publishMessageTask.topic: a part"},

		{"no topic", tasks(`{"publishMessageTask":{"payload":"close"}}`), "", 4000, textBadParameter + "tasks.publishMessageTask.topic: is missing"},
		{"topic as a number", tasks(`{"publishMessageTask":{"topic":1,"payload":"close"}}`), "", 4000, textBadParameter + "tasks.publishMessageTask.topic: must be a string"},
		{"empty topic", message("", "x"), "", 4000, textInvalidValue + "tasks.publishMessageTask.topic: "},
		{"topic of two levels", message("a/b", "x"), "", 4000, textInvalidValue + "tasks.publishMessageTask.topic: "},
		{"topic with a wildcard", message("#", "x"), "", 4000, textInvalidValue + "tasks.publishMessageTask.topic: "},
		{"long topic", message(long(129), "x"), "", 4000, textInvalidValue + "tasks.publishMessageTask.topic: "},
		{"topic that the product has not", message("other", "x"), "", 4000, textInvalidValue + "tasks.publishMessageTask.topic: "},
		{"no payload", tasks(`{"publishMessageTask":{"topic":"event"}}`), "", 4000, textBadParameter + "tasks.publishMessageTask.payload: is missing"},
		{"payload as an object", tasks(`{"publishMessageTask":{"topic":"event","payload":{}}}`), "", 4000, textBadParameter + "tasks.publishMessageTask.payload: must be a string"},
		{"long payload", message("event", long(16385)), "", 4000, textInvalidValue + "tasks.publishMessageTask.payload: "},

		{"no desired", map[string]string{"taskType": "UpdateShadow", "tasks": `{"updateShadowTask":{}}`}, "", 4000, textBadParameter + "tasks.updateShadowTask.desired: is missing"},
		{"desired as an object", map[string]string{"taskType": "UpdateShadow", "tasks": `{"updateShadowTask":{"desired":{"state":"open"}}}`}, "", 4000, textBadParameter + "tasks.updateShadowTask.desired: must be a string"},
		{"empty desired", shadow(""), "", 4000, textInvalidValue + "tasks.updateShadowTask.desired: "},
		{"desired of broken JSON", shadow(`{"state":`), "", 4000, textInvalidValue + "tasks.updateShadowTask.desired: "},
		{"desired as an array", shadow(`[1]`), "", 4000, textInvalidValue + "tasks.updateShadowTask.desired: "},
		{"desired with an empty key", shadow(`{"":1}`), "", 4000, textInvalidValue + "tasks.updateShadowTask.desired: "},
		{"desired that is too deep", shadow(`{"a":{"b":{"c":{"d":{"e":{"f":1}}}}}}`), "", 4000, textInvalidValue + "tasks.updateShadowTask.desired: "},
		{"long desired", shadow(`{"a":"` + long(16384) + `"}`), "", 4000, textInvalidValue + "tasks.updateShadowTask.desired: "},

		{"no SecretId", one("SecretId", ""), "", 4100, "authentication failed: SecretId"},
		{"unknown SecretId", one("SecretId", "AKIDnobody"), "", 4104, "there is no such SecretId"},
		{"no Signature", one("Signature", ""), "", 4100, "authentication failed: Signature"},
		{"wrong Signature", one("Signature", "NSI3UqqD99b/UJb4tbG/xZpRW64="), "", 4100, "authentication failed: the signature"},
		{"unknown SignatureMethod", one("SignatureMethod", "HmacMD5"), "", 4100, "authentication failed: SignatureMethod"},
		{"Token", one("Token", "t"), "", 4105, "tokens are not supported"},
		{"no Timestamp", one("Timestamp", ""), "", 4000, textBadParameter + "Timestamp: is missing"},
		{"Timestamp of words", one("Timestamp", "today"), "", 4000, textBadParameter + "Timestamp: must be a number"},
		{"old Timestamp", one("Timestamp", fmt.Sprint(now-3600)), "", 4200, "the request has expired"},
		{"Timestamp of tomorrow", one("Timestamp", fmt.Sprint(now+86400)), "", 4200, "the request has expired"},
		{"no Nonce", one("Nonce", ""), "", 4000, textBadParameter + "Nonce: is missing"},
		{"negative Nonce", one("Nonce", "-1"), "", 4000, textBadParameter + "Nonce: must be a number"},
		{"long name of a parameter", one(long(300), "x"), "", 4000, "the request cannot be read"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			params := c.message(row.set)
			delete(params, row.without)
			got := c.v2(t, "POST", params)
			if text, _ := got["message"].(string); got["code"] != row.code || !strings.HasPrefix(text, row.message) || got["codeDesc"] == "" {
				t.Errorf("answer %v\nwant   code %v and a message that begins %q", got, row.code, row.message)
			}
		})
	}
	t.Run("wire", func(t *testing.T) { badWire(t, f, c) })
	t.Run("V3", func(t *testing.T) { badV3(t, c) })
	if made := c.tasks(t); len(made) > 0 {
		t.Errorf("bad calls have made %v", made)
	}
	t.Logf("%d bad calls of V2 with one parameter wrong", len(rows))
}

// badWire are calls that no table of parameters can tell.
func badWire(t *testing.T, f *front, c *caller) {
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	good := func() string { return qcloud.EncodeForm(c.sign("POST", qcloud.V2, c.message(nil))) }
	replayed := qcloud.EncodeForm(c.sign("POST", qcloud.V2, map[string]string{"Action": "DescribeTask", "id": "none"}))
	f.send(t, "POST", "/v2/index.php", form, replayed)
	// The client for Python leaves out what begins with "@", and so would anyone.
	unsigned := c.message(map[string]string{"deviceNameFilter": "@.*"})
	all := c.sign("POST", qcloud.V2, unsigned)
	covered := maps.Clone(all)
	delete(covered, "deviceNameFilter")
	all["Signature"] = qcloud.Sign("", c.secretKey, qcloud.StringToSign("POST", v2host, "/v2/index.php", covered))

	for name, call := range map[string]struct {
		method, target string
		header         http.Header
		body           string
		code           float64
		message        string
	}{
		"replay":                  {"POST", "/v2/index.php", form, replayed, 4500, "the request was seen before"},
		"unsigned parameter":      {"POST", "/v2/index.php", form, qcloud.EncodeForm(all), 4100, "authentication failed: deviceNameFilter"},
		"parameter twice":         {"POST", "/v2/index.php", form, good() + "&productID=OTHER", 4000, textBadParameter + "productID: is given twice"},
		"query and body":          {"POST", "/v2/index.php?productID=OTHER", form, good(), 4000, textBadParameter + "productID: is given twice"},
		"added after signing":     {"POST", "/v2/index.php", form, good() + "&maxExecutionTimeInSeconds=1", 4100, "authentication failed"},
		"invalid UTF-8":           {"POST", "/v2/index.php", form, good() + "&x=%ff", 4000, textBadParameter + "x: must be UTF-8"},
		"invalid UTF-8 in a name": {"POST", "/v2/index.php", form, good() + "&%ff=x", 4000, "the request cannot be read"},
		"broken escape":           {"POST", "/v2/index.php", form, good() + "&x=%zz", 4000, textBadParameter + "x: "},
		"too large a body":        {"POST", "/v2/index.php", form, good() + "&x=" + strings.Repeat("x", qcloud.MaxBytes), 4000, "the request is too large"},
		"too many parameters":     {"POST", "/v2/index.php", form, good() + many(300), 4000, "the request is too large"},
		"PUT":                     {"PUT", "/v2/index.php", form, good(), 4000, "the protocol is not supported"},
		"DELETE":                  {"DELETE", "/v2/index.php?" + good(), nil, "", 4000, "the protocol is not supported"},
		"XML":                     {"POST", "/v2/index.php", http.Header{"Content-Type": {"text/xml"}}, "<a/>", 4000, "the protocol is not supported"},
		"broken multipart":        {"POST", "/v2/index.php", http.Header{"Content-Type": {"multipart/form-data; boundary=b"}}, "--b\r\nx", 4000, "the request cannot be read"},
		"no boundary":             {"POST", "/v2/index.php", http.Header{"Content-Type": {"multipart/form-data"}}, "", 4000, "the request cannot be read"},
		"nothing at all":          {"GET", "/v2/index.php", nil, "", 4100, "authentication failed: SecretId"},
	} {
		t.Run(name, func(t *testing.T) {
			got := f.send(t, call.method, call.target, call.header, call.body)
			if text, _ := got["message"].(string); got["code"] != call.code || !strings.HasPrefix(text, call.message) {
				t.Errorf("answer %v\nwant   code %v and a message that begins %q", got, call.code, call.message)
			}
		})
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "&p%d=", i)
	}
	return b.String()
}

// badV3 are bad calls of V3 and their codes.
func badV3(t *testing.T, c *caller) {
	task := func(product, filter, schedule, tasks string) string {
		return fmt.Sprintf(`{"TaskType":"PublishMessage","ProductId":%s,"DeviceNameFilter":%s,"ScheduleTimeInSeconds":%s,"Tasks":%s}`, product, filter, schedule, tasks)
	}
	const publish = `{"PublishMessageTask":{"Topic":"event","Payload":"close"}}`
	product := strconv.Quote(c.productID)
	for name, call := range map[string]struct{ action, body, code, message string }{
		"unknown action":      {"DropTask", `{}`, "InvalidAction", "Action: "},
		"an action of V2":     {"ListTasks", `{"Offset":0,"Limit":1}`, "InvalidAction", "Action: "},
		"no TaskType":         {"CreateTask", `{}`, "MissingParameter", "TaskType: is missing"},
		"broken JSON":         {"CreateTask", `{`, "InvalidParameter", "the body: must be a JSON object"},
		"key twice":           {"DescribeTask", `{"Id":"a","Id":"b"}`, "InvalidParameter", "the body: the key"},
		"array":               {"DescribeTask", `[]`, "InvalidParameter", "the body: must be a JSON object"},
		"number for a string": {"CreateTask", task("1", `"x"`, "0", publish), "InvalidParameter", "ProductId: must be a string"},
		"word for a number":   {"CreateTask", task(product, `"x"`, `"now"`, publish), "InvalidParameter", "ScheduleTimeInSeconds: must be an integer"},
		"fraction":            {"CreateTask", task(product, `"x"`, "0.5", publish), "InvalidParameter", "ScheduleTimeInSeconds: must be an integer"},
		"negative schedule":   {"CreateTask", task(product, `"x"`, "-1", publish), "InvalidParameterValue", "ScheduleTimeInSeconds: "},
		"bad filter":          {"CreateTask", task(product, `"("`, "0", publish), "InvalidParameterValue", "DeviceNameFilter: "},
		"no such product":     {"CreateTask", task(`"NOSUCH1234"`, `"x"`, "0", publish), "ResourceNotFound.ProductNotExist", "ProductId: "},
		"Tasks as a string":   {"CreateTask", task(product, `"x"`, "0", strconv.Quote(publish)), "InvalidParameter", "Tasks: must be an object"},
		"bad topic":           {"CreateTask", task(product, `"x"`, "0", `{"PublishMessageTask":{"Topic":"a/b","Payload":"close"}}`), "InvalidParameterValue", "Tasks.PublishMessageTask.Topic: "},
		"no Payload":          {"CreateTask", task(product, `"x"`, "0", `{"PublishMessageTask":{"Topic":"event"}}`), "MissingParameter", "Tasks.PublishMessageTask.Payload: is missing"},
		"unknown task":        {"DescribeTask", `{"Id":"5ad5aa513332ea4cb86e9ad5"}`, "ResourceNotFound.TaskNotExist", "Id: "},
		"ID that is none":     {"CancelTask", `{"Id":"../x"}`, "ResourceNotFound.TaskNotExist", "Id: "},
		"no ID":               {"CancelTask", `{}`, "MissingParameter", "Id: is missing"},
		"page of none":        {"DescribeTasks", `{"Offset":0,"Limit":0}`, "InvalidParameterValue", "Limit: must be 1 to 250"},
		"page of too many":    {"DescribeTasks", `{"Offset":0,"Limit":251}`, "InvalidParameterValue", "Limit: must be 1 to 250"},
		"before the start":    {"DescribeTasks", `{"Offset":-1,"Limit":1}`, "InvalidParameterValue", "Offset: must be 0"},
		"no Limit":            {"DescribeTasks", `{"Offset":0}`, "MissingParameter", "Limit: is missing"},
	} {
		t.Run(name, func(t *testing.T) { wantErrorV3(t, c.v3(t, call.action, call.body), call.code, call.message) })
	}
	for name, call := range map[string]struct {
		change        func(http.Header)
		code, message string
	}{
		"wrong signature": {func(h http.Header) {
			signed := h.Get("Authorization")
			last := "0"
			if strings.HasSuffix(signed, last) {
				last = "1"
			}
			h.Set("Authorization", signed[:len(signed)-1]+last)
		}, "AuthFailure.SignatureFailure", ""},
		"other action":  {func(h http.Header) { h.Set("X-TC-Action", "CancelTask") }, "ResourceNotFound.TaskNotExist", ""}, // not signed by clients
		"other version": {func(h http.Header) { h.Set("X-TC-Version", "2019-01-01") }, "NoSuchVersion", "Version: "},
		"other time":    {func(h http.Header) { h.Set("X-TC-Timestamp", "1551113065") }, "AuthFailure.Signature", ""},
	} {
		t.Run(name, func(t *testing.T) {
			// None has the signature of another, which would be a replay.
			body := fmt.Sprintf(`{"Id":"5ad5aa513332ea4cb86e9ad5","For":%q}`, name)
			header := c.headers(t, "DescribeTask", body)
			call.change(header)
			wantErrorV3(t, response(t, c.f.send(t, http.MethodPost, "/", header, body)), call.code, call.message)
		})
	}
	t.Run("other body", func(t *testing.T) {
		header := c.headers(t, "DescribeTask", `{"Id":"a"}`)
		wantErrorV3(t, response(t, c.f.send(t, http.MethodPost, "/", header, `{"Id":"b"}`)), "AuthFailure.SignatureFailure", "")
	})
	t.Run("JSON without Authorization", func(t *testing.T) {
		got := c.f.send(t, http.MethodPost, "/", http.Header{"Content-Type": {"application/json"}}, `{}`)
		wantErrorV3(t, response(t, got), "AuthFailure.SignatureFailure", "Authorization: ")
	})
}

func wantErrorV3(t *testing.T, got map[string]any, code, message string) {
	t.Helper()
	e, _ := got["Error"].(map[string]any)
	gotCode, _ := e["Code"].(string)
	gotMessage, _ := e["Message"].(string)
	if !strings.HasPrefix(gotCode, code) || !strings.HasPrefix(gotMessage, message) || gotMessage == "" {
		t.Errorf("answer %v\nwant   code %s and a message that begins %q", got, code, message)
	}
}
