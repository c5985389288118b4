package clients

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/qcloud"
)

// The requests and answers of CreateTask, section 4, character for character.
const (
	updateShadowHead = "POST /v2/index.php HTTP/1.1\r\nHost: iotcloud.api.qcloud.com\r\n"
	updateShadowBody = `Action=CreateTask&taskType=UpdateShadow&deviceNameFilter=door$&scheduleTimeInSeconds=0&productID=ABCDE12345&tasks={"updateShadowTask":{"desired":"{\"state\":\"open\"}"}}&`
	updateShadowDone = `{
    "taskId": "5ad5aa513332ea4cb86e9ad5",
    "message": "",
    "codeDesc": "Success",
    "code": 0
}`
	publishMessageHead = "POST /v2/index.php HTTP/1.1\r\nHost: iotcloud.api.qcloud.com\r\n"
	publishMessageBody = `Action=CreateTask&taskType=PublishMessage&deviceNameFilter=^door&scheduleTimeInSeconds=0&productID=ABCDE12345&tasks={"publishMessageTask":{"payload":"close", "topic":"event"}}&`
	publishMessageDone = `{
    "taskId": "5ad5afbb3332ea4cb86e9ad8",
    "message": "",
    "codeDesc": "Success",
    "code": 0
}`
)

var taskID = regexp.MustCompile(`^[0-9a-f]{24}$`)

func (s *suite) testExamples(t *testing.T) {
	a := s.firstAccount(t)
	for _, example := range []struct{ head, body, done string }{
		{updateShadowHead, updateShadowBody, updateShadowDone},
		{publishMessageHead, publishMessageBody, publishMessageDone},
	} {
		answer := a.send(t, example.head, example.body)
		var got, want map[string]any
		for text, value := range map[string]*map[string]any{answer: &got, example.done: &want} {
			if err := json.Unmarshal([]byte(text), value); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		id, _ := got["taskId"].(string)
		if !taskID.MatchString(id) {
			t.Fatalf("answer %s: want a taskId of 24 hexadecimal digits", answer)
		}
		want["taskId"] = id
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
		eventually(t, "task "+id+" to be done", func() (bool, string) {
			task := a.call(t, "Action=DescribeTask&id="+id+"&")
			return task["status"] == float64(qcloud.StatusDone), fmt.Sprint(task)
		})
	}
	for name, want := range map[string][]string{
		"front-door": {"delta"}, "back-door": {"delta"}, "door-1": {"close"}, "window-1": nil,
	} {
		eventually(t, "the messages of "+name, func() (bool, string) {
			var got []string
			for _, m := range a.fleet.Received(name) {
				what := m.Payload
				if strings.HasPrefix(m.Topic, "$shadow/") && strings.Contains(what, `"state":{"state":"open"}`) {
					what = "delta"
				}
				got = append(got, what)
			}
			return slices.Equal(got, want), fmt.Sprintf("it has received %q", got)
		})
	}
}

// signed completes the body of a request, which ends with "&" where the common
// parameters follow.
func (a *account) signed(body string) string {
	a.nonce++
	common := map[string]string{
		"Region": "gz", "SecretId": a.secretID, "Nonce": strconv.Itoa(a.nonce), "Timestamp": strconv.FormatInt(time.Now().Unix(), 10),
	}
	params := map[string]string{}
	for name, value := range common {
		params[name] = value
		body += name + "=" + value + "&"
	}
	for pair := range strings.SplitSeq(strings.TrimSuffix(body, "&"), "&") {
		name, value, _ := strings.Cut(pair, "=")
		params[name] = value
	}
	text := qcloud.StringToSign(http.MethodPost, "iotcloud.api.qcloud.com", qcloud.V2.Path(), params)
	return body + "Signature=" + url.QueryEscape(qcloud.Sign(qcloud.HmacSHA1, a.secretKey, text))
}

// send writes a request to a connection as it is, and returns the answer's body.
func (a *account) send(t *testing.T, head, body string) string {
	t.Helper()
	body = a.signed(body)
	conn, err := new(net.Dialer).DialContext(a.ctx, "tcp", strings.TrimPrefix(a.apiURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("status %s, error %v: %s", response.Status, err, answer)
	}
	return string(answer)
}

// call sends a request and returns the answer.
func (a *account) call(t *testing.T, body string) map[string]any {
	t.Helper()
	var answer map[string]any
	text := a.send(t, updateShadowHead, body)
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return answer
}
