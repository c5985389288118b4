package clients

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common"
	sdkerrors "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common/errors"
	iotcloud "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/iotcloud/v20180614"
)

// Every code that the documents list, provoked through the client, in every way
// that it signs.
func TestRefused(t *testing.T) {
	a := environment(t)
	created := func(change func(*iotcloud.CreateTaskRequest)) func(*iotcloud.Client) error {
		return func(c *iotcloud.Client) error {
			r := a.message("^door", "refused")
			change(r)
			_, err := c.CreateTask(r)
			return err
		}
	}
	for _, test := range []struct {
		name, want string
		call       func(*iotcloud.Client) error
	}{
		{"describe a task that does not exist", "ResourceNotFound.TaskNotExist", func(c *iotcloud.Client) error {
			_, err := c.DescribeTask(describe("5ad5aa513332ea4cb86e9ad5"))
			return err
		}},
		{"cancel a task that does not exist", "ResourceNotFound.TaskNotExist", func(c *iotcloud.Client) error {
			_, err := c.CancelTask(cancel("5ad5aa513332ea4cb86e9ad5"))
			return err
		}},
		{"not a regular expression", "InvalidParameterValue", created(func(r *iotcloud.CreateTaskRequest) { r.DeviceNameFilter = common.StringPtr("(") })},
		{"a time that is past", "InvalidParameterValue", created(func(r *iotcloud.CreateTaskRequest) { r.ScheduleTimeInSeconds = common.Uint64Ptr(1524000000) })},
		{"too long", "InvalidParameterValue", created(func(r *iotcloud.CreateTaskRequest) { r.MaxExecutionTimeInSeconds = common.Uint64Ptr(86401) })},
		{"no such type", "InvalidParameterValue", created(func(r *iotcloud.CreateTaskRequest) { r.TaskType = common.StringPtr("Dance") })},
		{"desired is no object", "InvalidParameterValue", created(func(r *iotcloud.CreateTaskRequest) {
			r.TaskType = common.StringPtr("UpdateShadow")
			r.Tasks = &iotcloud.Task{UpdateShadowTask: &iotcloud.BatchUpdateShadow{Desired: common.StringPtr("[1]")}}
		})},
		{"no product with this ID", "ResourceNotFound.ProductNotExist", created(func(r *iotcloud.CreateTaskRequest) { r.ProductId = common.StringPtr("NONE123456") })},
		{"no product", "MissingParameter", created(func(r *iotcloud.CreateTaskRequest) { r.ProductId = nil })},
		{"no tasks", "MissingParameter", created(func(r *iotcloud.CreateTaskRequest) { r.Tasks = nil })},
		{"no tasks of the type", "MissingParameter", created(func(r *iotcloud.CreateTaskRequest) { r.TaskType = common.StringPtr("UpdateShadow") })},
		{"no time", "MissingParameter", created(func(r *iotcloud.CreateTaskRequest) { r.ScheduleTimeInSeconds = nil })},
		{"a page that is too long", "InvalidParameterValue", func(c *iotcloud.Client) error {
			r := iotcloud.NewDescribeTasksRequest()
			r.Offset, r.Limit = common.Uint64Ptr(0), common.Uint64Ptr(251)
			_, err := c.DescribeTasks(r)
			return err
		}},
		{"an action of another kind", "InvalidAction", func(c *iotcloud.Client) error {
			_, err := c.DescribeProducts(iotcloud.NewDescribeProductsRequest())
			return err
		}},
		{"another version", "NoSuchVersion", created(func(r *iotcloud.CreateTaskRequest) { r.WithApiInfo("iotcloud", "2021-04-08", "CreateTask") })},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, w := range ways {
				t.Run(w.String(), func(t *testing.T) { wantCode(t, test.call(a.client(t, w)), test.want) })
			}
		})
	}
}

// A value of the wrong type, which the client's own types do not allow.
func TestWrongType(t *testing.T) {
	a := environment(t)
	type wrong struct {
		*iotcloud.CreateTaskRequest
		ProductId []string //nolint:revive // as the parameter is called
	}
	request := &wrong{a.message("^door", "refused"), []string{a.product}}
	err := a.client(t, ways[0]).Send(request, iotcloud.NewCreateTaskResponse())
	wantCode(t, err, "InvalidParameter")
}

func TestAlreadyStarted(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) {
			c := a.client(t, w)
			id := create(t, c, a.message("^door", "started"))
			finish(t, c, id)
			_, err := c.CancelTask(cancel(id))
			wantCode(t, err, "FailedOperation.AsyncTaskAlreadyStarted")
		})
	}
}

func TestLimit(t *testing.T) {
	a := environment(t)
	c := a.client(t, ways[0])
	var ids []string
	for i := range 5 {
		request := a.later()
		// Two equal calls with TC3 within a second are one.
		*request.ScheduleTimeInSeconds += uint64(i)
		ids = append(ids, create(t, c, request))
	}
	for _, w := range ways {
		request := a.later()
		*request.ScheduleTimeInSeconds += 10
		_, err := a.client(t, w).CreateTask(request)
		wantCode(t, err, "LimitExceeded.PengingOrProcessingTasksExceedLimit")
	}
	for _, id := range ids {
		if _, err := c.CancelTask(cancel(id)); err != nil {
			t.Errorf("CancelTask: %v", err)
		}
	}
	create(t, c, a.message("^door", "free again"))
}

// A product whose ID belongs to another account is nothing that a caller can mend.
func TestInternalError(t *testing.T) {
	a := environment(t)
	if a.product = os.Getenv("BATCHTASK_CONFLICT_PRODUCT_ID"); a.product == "" {
		t.Skip("BATCHTASK_CONFLICT_PRODUCT_ID is not set")
	}
	for _, w := range ways {
		_, err := a.client(t, w).CreateTask(a.message("^door", "refused"))
		wantCode(t, err, "InternalError")
	}
}

func TestRate(t *testing.T) {
	a := environment(t)
	slow, err := url.Parse(os.Getenv("BATCHTASK_SLOW_URL"))
	if err != nil || slow.Host == "" {
		t.Skipf("BATCHTASK_SLOW_URL is not set (%v)", err)
	}
	a.api = slow
	c := a.client(t, ways[0])
	var codes []string
	for range 20 {
		_, err := c.DescribeTask(describe("5ad5aa513332ea4cb86e9ad5"))
		var refused *sdkerrors.TencentCloudSDKError
		if errors.As(err, &refused) && refused.Code == "RequestLimitExceeded" {
			wantCode(t, err, "RequestLimitExceeded")
			return
		}
		wantCode(t, err, "ResourceNotFound.TaskNotExist")
		codes = append(codes, err.Error())
	}
	t.Errorf("20 calls at once and a rate of 1/s: %q", codes)
}

func TestCredentials(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) {
			for _, test := range []struct {
				want  string
				makes *common.Credential
			}{
				{"AuthFailure.SignatureFailure", common.NewCredential(a.secretID, a.secretKey+"x")},
				{"AuthFailure.SecretIdNotFound", common.NewCredential("AKIDnobody", a.secretKey)},
				{"AuthFailure.TokenFailure", common.NewTokenCredential(a.secretID, a.secretKey, "temporary")},
			} {
				c := a.client(t, w)
				c.WithCredential(test.makes)
				_, err := c.DescribeTask(describe("5ad5aa513332ea4cb86e9ad5"))
				wantCode(t, err, test.want)
			}
		})
	}
}

// dated is a request from a computer whose clock is wrong.
type dated struct {
	*iotcloud.DescribeTaskRequest
	timestamp string
}

// GetParams implements tchttp.Request. The client writes the time to what it
// returns, and reads it again to sign and send it.
func (d *dated) GetParams() map[string]string {
	params := d.DescribeTaskRequest.GetParams()
	if params["Timestamp"] != "" {
		params["Timestamp"] = d.timestamp
	}
	return params
}

func TestExpired(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		for _, by := range []time.Duration{-10 * time.Minute, -time.Minute, time.Minute, 10 * time.Minute} {
			t.Run(w.String()+" "+by.String(), func(t *testing.T) {
				at := time.Now().Add(by).Unix()
				request := &dated{describe("5ad5aa513332ea4cb86e9ad5"), strconv.FormatInt(at, 10)}
				err := a.client(t, w).Send(request, iotcloud.NewDescribeTaskResponse())
				switch {
				case by.Abs() > 5*time.Minute:
					wantCode(t, err, "AuthFailure.SignatureExpire")
				case w.method == "TC3-HMAC-SHA256" && w.verb == "POST":
					wantCode(t, err, "ResourceNotFound.TaskNotExist")
				default:
					// The client does not find the ID in a wrapped request.
					wantCode(t, err, "MissingParameter")
				}
			})
		}
	}
}

// again is a transport that sends every request that succeeds once more, byte for
// byte.
type again struct{}

// RoundTrip implements http.RoundTripper. It returns the last answer.
func (again) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	first, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = first.Body.Close() }()
	answer, err := io.ReadAll(first.Body)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(answer, []byte(`"Error"`)) {
		return nil, fmt.Errorf("the first time already: %s", answer)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return http.DefaultTransport.RoundTrip(r)
}

func TestReplay(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		if w.method == "TC3-HMAC-SHA256" {
			continue // its calls have no Nonce
		}
		t.Run(w.String(), func(t *testing.T) {
			c := a.client(t, w)
			c.WithHttpTransport(again{})
			r := iotcloud.NewDescribeTasksRequest()
			r.Offset, r.Limit = common.Uint64Ptr(0), common.Uint64Ptr(1)
			_, err := c.DescribeTasks(r)
			wantCode(t, err, "AuthFailure.SignatureFailure")
			if !strings.Contains(err.Error(), "Nonce") {
				t.Errorf("%v: want it to name the Nonce", err)
			}
		})
	}
}
