package clients

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common"
	sdkerrors "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common/errors"
	"github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common/profile"
	iotcloud "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/iotcloud/v20180614"
)

// account is what the environment names.
type account struct {
	api                 *url.URL
	secretID, secretKey string
	product             string
}

func environment(t *testing.T) account {
	t.Helper()
	text := os.Getenv("BATCHTASK_API_URL")
	if text == "" {
		t.Skip("BATCHTASK_API_URL is not set: run make dev, and in another terminal `. .dev/env`")
	}
	api, err := url.Parse(text)
	if err != nil {
		t.Fatalf("BATCHTASK_API_URL: %v", err)
	}
	a := account{
		api: api, secretID: os.Getenv("BATCHTASK_SECRET_ID"), secretKey: os.Getenv("BATCHTASK_SECRET_KEY"),
		product: os.Getenv("BATCHTASK_PRODUCT_ID"),
	}
	if a.product == "" {
		a.product = "ABCDE12345"
	}
	return a
}

// way is how the client signs and sends.
type way struct{ method, verb string }

func (w way) String() string { return w.method + " " + w.verb }

// ways are all that the client has.
var ways = []way{
	{"TC3-HMAC-SHA256", "POST"},
	{"TC3-HMAC-SHA256", "GET"},
	{"HmacSHA256", "POST"},
	{"HmacSHA256", "GET"},
	{"HmacSHA1", "POST"},
	{"HmacSHA1", "GET"},
}

// client returns the client as a user makes it, with another endpoint.
func (a account) client(t *testing.T, w way) *iotcloud.Client {
	t.Helper()
	p := profile.NewClientProfile()
	p.SignMethod, p.HttpProfile.ReqMethod = w.method, w.verb
	p.HttpProfile.Scheme, p.HttpProfile.Endpoint = a.api.Scheme, a.api.Host
	p.HttpProfile.ReqTimeout = 30
	c, err := iotcloud.NewClient(common.NewCredential(a.secretID, a.secretKey), "ap-guangzhou", p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// unknowing returns a client that believes to call the cloud: names resolve to
// this API, as a user's own DNS or a gateway may do it.
func (a account) unknowing(t *testing.T, w way) *iotcloud.Client {
	t.Helper()
	there := *a.api
	a.api = &url.URL{Scheme: there.Scheme}
	c := a.client(t, w)
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, there.Host)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	c.WithHttpTransport(transport)
	return c
}

// message makes a request for a PublishMessage task.
func (a account) message(filter, payload string) *iotcloud.CreateTaskRequest {
	r := iotcloud.NewCreateTaskRequest()
	r.TaskType = common.StringPtr("PublishMessage")
	r.ProductId = common.StringPtr(a.product)
	r.DeviceNameFilter = common.StringPtr(filter)
	r.ScheduleTimeInSeconds = common.Uint64Ptr(0)
	r.Tasks = &iotcloud.Task{PublishMessageTask: &iotcloud.BatchPublishMessage{
		Topic: common.StringPtr("event"), Payload: common.StringPtr(payload),
	}}
	return r
}

// later makes a request for a task that waits for an hour.
func (a account) later() *iotcloud.CreateTaskRequest {
	r := a.message("^door", "later")
	r.ScheduleTimeInSeconds = common.Uint64Ptr(uint64(time.Now().Add(time.Hour).Unix()))
	return r
}

func describe(id string) *iotcloud.DescribeTaskRequest {
	r := iotcloud.NewDescribeTaskRequest()
	r.Id = common.StringPtr(id)
	return r
}

func cancel(id string) *iotcloud.CancelTaskRequest {
	r := iotcloud.NewCancelTaskRequest()
	r.Id = common.StringPtr(id)
	return r
}

// create creates a task that should be accepted, and returns its ID.
func create(t *testing.T, c *iotcloud.Client, r *iotcloud.CreateTaskRequest) string {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		answer, err := c.CreateTask(r)
		if err == nil {
			return *answer.Response.TaskId
		}
		// The place of a task that has just ended becomes free a moment later.
		var refused *sdkerrors.TencentCloudSDKError
		if !errors.As(err, &refused) || refused.Code != "LimitExceeded.PengingOrProcessingTasksExceedLimit" {
			t.Fatalf("CreateTask: %v", err)
		}
		select {
		case <-deadline:
			t.Fatalf("CreateTask: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// finish waits until a task has a status from 3 on, which is an end.
func finish(t *testing.T, c *iotcloud.Client, id string) *iotcloud.DescribeTaskResponse {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		answer, err := c.DescribeTask(describe(id))
		if err != nil {
			t.Fatalf("DescribeTask: %v", err)
		}
		if *answer.Response.Status >= 3 {
			return answer
		}
		select {
		case <-deadline:
			t.Fatalf("the task is not at an end: %s", answer.ToJsonString())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func wantCode(t *testing.T, err error, want string) {
	t.Helper()
	var refused *sdkerrors.TencentCloudSDKError
	if !errors.As(err, &refused) {
		t.Fatalf("error %v, want code %s", err, want)
	}
	if refused.Code != want || refused.Message == "" || len(refused.RequestId) != 36 {
		t.Errorf("code %q, message %q, request ID %q, want code %s, a message and a UUID", refused.Code, refused.Message, refused.RequestId, want)
	}
}
