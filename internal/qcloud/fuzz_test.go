package qcloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"mime/multipart"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// checkParams fails if parameters that a parser let through break its promises.
func checkParams(t *testing.T, p params, err error) {
	t.Helper()
	if err != nil {
		if _, ok := errors.AsType[*Error](err); !ok {
			t.Fatalf("an error of another type: %v", err)
		}
		if !json.Valid([]byte(strings.TrimSpace(written(t, V2, err)))) {
			t.Fatalf("the answer to %v is not JSON", err)
		}
	}
	if len(p) > MaxParameters {
		t.Fatalf("%d parameters", len(p))
	}
	for name, value := range p {
		if name == "" || len(name) > MaxNameBytes || !utf8.ValidString(name) || !utf8.ValidString(value) {
			t.Fatalf("parameter %q=%q", name, value)
		}
	}
}

var allActions = []string{
	ActionCreateTask, ActionDescribeTask, ActionListTasks, ActionDescribeTasks, ActionCancelTask,
	ActionGetDeviceShadow, ActionDescribeDeviceShadow, ActionUpdateDeviceShadow, ActionPublish, ActionPublishMessage,
}

// decodeBoth decodes the parameters as a call of each action.
func decodeBoth(t *testing.T, p params) {
	t.Helper()
	for _, version := range []Version{V2, V3} {
		for _, action := range allActions {
			checkDecoded(t, &Call{Version: version, Action: action, apiVersion: VersionV3, params: p})
		}
	}
}

// checkDecoded fails if a decoded request cannot be carried out by its type.
func checkDecoded(t *testing.T, call *Call) {
	t.Helper()
	request, err := call.Decode()
	if err != nil {
		if _, ok := errors.AsType[*Error](err); !ok || request != nil {
			t.Fatalf("Decode = %v, %v", request, err)
		}
		return
	}
	switch r := request.(type) {
	case *CreateTask:
		if (r.UpdateShadow != nil) != (r.TaskType == TaskTypeUpdateShadow) || (r.PublishMessage != nil) != (r.TaskType == TaskTypePublishMessage) {
			t.Fatalf("the block does not belong to the type: %+v", r)
		}
		for _, text := range []string{r.ProductID, r.DeviceNameFilter} {
			if !utf8.ValidString(text) {
				t.Fatalf("not UTF-8: %q", text)
			}
		}
	case *ListTasks:
		if r.Offset < 0 || r.Limit < 1 || r.Limit > maxPage {
			t.Fatalf("a page that there is not: %+v", r)
		}
	case *UpdateDeviceShadow:
		if r.Version < 0 || !utf8.ValidString(r.State) {
			t.Fatalf("an update that there is not: %+v", r)
		}
	case *DescribeTask:
		if r.ID == "" {
			t.Fatal("no ID")
		}
	}
}

// FuzzURLEncoded checks the parser of queries and urlencoded bodies, also against
// that of net/url.
func FuzzURLEncoded(f *testing.F) {
	f.Add(`Action=CreateTask&taskType=UpdateShadow&deviceNameFilter=door$&scheduleTimeInSeconds=0&productID=ABCDE12345&tasks={"updateShadowTask":{"desired":"{\"state\":\"open\"}"}}&`)
	f.Add("taskType=PublishMessage&tasks.publishMessageTask.topic=event&tasks.publishMessageTask.payload=%E7%8A%B6+x&productID=&deviceNameFilter=&scheduleTimeInSeconds=1")
	f.Add("TaskType=UpdateShadow&Tasks.UpdateShadowTask.Desired={}&ProductId=p&DeviceNameFilter=.*&ScheduleTimeInSeconds=0&Offset=1&Limit=1&Id=x")
	f.Add("productID=p&deviceName=d&state={\"desired\":{}}&version=3&topic=p/d/t&payload=aGk=&payloadEncoding=base64&qos=1")
	f.Add("tasks=&tasks.=1&tasks..a=2&id=%ff&=1&&a=b;c=d&pageNum=1&pageSize=250")
	f.Fuzz(func(t *testing.T, text string) {
		p := params{}
		err := p.urlencoded(text)
		checkParams(t, p, err)
		if err != nil {
			return
		}
		if !strings.Contains(text, ";") {
			want, err := url.ParseQuery(text)
			if err != nil {
				t.Fatalf("%q: net/url refuses: %v", text, err)
			}
			if len(want) != len(p) {
				t.Fatalf("%q: %v, net/url says %v", text, p, want)
			}
			for name, value := range p {
				if diff := cmp.Diff([]string{value}, want[name]); diff != "" {
					t.Fatalf("%q: %s (-got +net/url):\n%s", text, name, diff)
				}
			}
		}
		decodeBoth(t, p)
	})
}

// FuzzMultipart checks the parser of multipart bodies, and that it reads what
// mime/multipart writes.
func FuzzMultipart(f *testing.F) {
	f.Add([]byte("--b\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\n1\r\n--b--\r\n"), "b")
	f.Add([]byte("\r\n--b\r\nContent-Disposition: form-data; name=\"tasks\"\r\n\r\n{}\r\n--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n\xff\r\n--b--\r\n"), "b")
	f.Add([]byte("--b\r\nContent-Transfer-Encoding: quoted-printable\r\nContent-Disposition: form-data; name=a\r\n\r\n=FF\r\n--b--"), "b")
	f.Fuzz(func(t *testing.T, body []byte, boundary string) {
		p := params{}
		err := p.multipart(body, boundary)
		checkParams(t, p, err)
		if err != nil {
			return
		}
		var again bytes.Buffer
		writer := multipart.NewWriter(&again)
		for name, value := range p {
			if strings.ContainsAny(name, "\r\n") {
				return // a header cannot hold it, and the writer puts something else
			}
			if err := writer.WriteField(name, value); err != nil {
				t.Fatal(err)
			}
		}
		if err := writer.Close(); err != nil {
			t.Fatal(err)
		}
		q := params{}
		if err := q.multipart(again.Bytes(), writer.Boundary()); err != nil {
			t.Fatalf("%q, written again: %v", body, err)
		}
		if diff := cmp.Diff(p, q); diff != "" {
			t.Fatalf("%q, written again (-first +again):\n%s", body, diff)
		}
		decodeBoth(t, p)
	})
}

// FuzzJSONBody checks the reader of JSON: what it takes, encoding/json takes for
// the same, and what it says is text in UTF-8 is.
func FuzzJSONBody(f *testing.F) {
	f.Add([]byte(createBody))
	f.Add([]byte(`{"TaskType":"PublishMessage","ProductId":"p","DeviceNameFilter":".","ScheduleTimeInSeconds":"0","Tasks":{"PublishMessageTask":{"Topic":"t","Payload":"\ud83d\ude00\\ud83d"}}}`))
	f.Add([]byte(`{"Offset":-0,"Limit":1e2,"Id":null,"a":[{"b":[]},true,null,1.5e300]}`))
	f.Add([]byte(`{"ProductId":"p","DeviceName":"d","State":"{}","ShadowVersion":3,"Prefix":"$shadow","Topic":"p/d/t","Payload":"x","Qos":0,"PayloadEncoding":""}`))
	f.Add([]byte(`{"a":1,"a":2,"":"\ud83d"}`))
	f.Add([]byte(strings.Repeat(`[`, 40) + strings.Repeat(`]`, 40)))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseObject(body)
		if err == nil {
			decoder := json.NewDecoder(bytes.NewReader(body))
			decoder.UseNumber()
			var want map[string]any
			if err := decoder.Decode(&want); err != nil {
				t.Fatalf("%q: encoding/json refuses: %v", body, err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%q (-encoding/json +got):\n%s", body, diff)
			}
		}
		for _, action := range allActions {
			checkDecoded(t, &Call{Version: V3, Action: action, apiVersion: VersionV3, body: body})
		}
	})
}
