package clients

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common"
	iotcloud "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/iotcloud/v20180614"
)

// door is the device that calls are made about.
const door = "door-1"

// told is what Data holds.
type told struct {
	Type    string `json:"type"`
	Result  int    `json:"result"`
	Payload struct {
		State   map[string]map[string]any `json:"state"`
		Version uint64                    `json:"version"`
	} `json:"payload"`
}

func parseData(t *testing.T, data *string) told {
	t.Helper()
	var got told
	if data == nil {
		t.Fatal("there is no Data")
	}
	if err := json.Unmarshal([]byte(*data), &got); err != nil {
		t.Fatalf("Data %q: %v", *data, err)
	}
	return got
}

func (a account) getShadow(t *testing.T, c *iotcloud.Client) told {
	t.Helper()
	r := iotcloud.NewDescribeDeviceShadowRequest()
	r.ProductId, r.DeviceName = common.StringPtr(a.product), common.StringPtr(door)
	answer, err := c.DescribeDeviceShadow(r)
	if err != nil {
		t.Fatalf("DescribeDeviceShadow: %v", err)
	}
	return parseData(t, answer.Response.Data)
}

func (a account) update(state string, version uint64) *iotcloud.UpdateDeviceShadowRequest {
	r := iotcloud.NewUpdateDeviceShadowRequest()
	r.ProductId, r.DeviceName = common.StringPtr(a.product), common.StringPtr(door)
	r.State, r.ShadowVersion = common.StringPtr(state), common.Uint64Ptr(version)
	return r
}

func (a account) publish(device, topic, payload string) *iotcloud.PublishMessageRequest {
	r := iotcloud.NewPublishMessageRequest()
	r.ProductId, r.DeviceName = common.StringPtr(a.product), common.StringPtr(device)
	r.Topic, r.Payload = common.StringPtr(a.product+"/"+device+"/"+topic), common.StringPtr(payload)
	return r
}

func TestDeviceShadow(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) {
			c := a.client(t, w)
			want := "go direct " + w.String() + awkward
			state, err := json.Marshal(map[string]any{"desired": map[string]any{"direct": want}})
			if err != nil {
				t.Fatal(err)
			}
			before := a.getShadow(t, c).Payload.Version
			answer, err := c.UpdateDeviceShadow(a.update(string(state), before))
			if err != nil {
				t.Fatalf("UpdateDeviceShadow: %v", err)
			}
			got := parseData(t, answer.Response.Data)
			if got.Type != "update" || got.Result != 0 || got.Payload.Version != before+1 || len(got.Payload.State["desired"]) != 1 || got.Payload.State["desired"]["direct"] != want {
				t.Errorf("UpdateDeviceShadow is answered %s", *answer.Response.Data)
			}
			whole := a.getShadow(t, c)
			if whole.Type != "get" || whole.Payload.Version != before+1 || whole.Payload.State["desired"]["direct"] != want || whole.Payload.State["delta"]["direct"] != want {
				t.Errorf("the shadow is %+v", whole)
			}
			_, err = c.UpdateDeviceShadow(a.update(string(state), before+100))
			wantCode(t, err, "FailedOperation.UpdateVersionNotMatch")
		})
	}
	c := a.client(t, ways[0])
	answer, err := c.UpdateDeviceShadow(a.update(`{"desired":null}`, 0))
	if err != nil {
		t.Fatal(err)
	}
	if got := parseData(t, answer.Response.Data); got.Payload.State["desired"] != nil {
		t.Errorf("clearing it is answered %s", *answer.Response.Data)
	}
	if whole := a.getShadow(t, c); whole.Payload.State["desired"] != nil || whole.Payload.State["delta"] != nil {
		t.Errorf("the cleared shadow is %+v", whole)
	}
}

func TestPublishMessage(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) {
			c := a.client(t, w)
			want := "go direct " + w.String() + awkward
			plain := a.publish(door, "event", want)
			if _, err := c.PublishMessage(plain); err != nil {
				t.Errorf("PublishMessage: %v", err)
			}
			encoded := a.publish(door, "event", base64.StdEncoding.EncodeToString([]byte(want+" encoded")))
			encoded.PayloadEncoding, encoded.Qos = common.StringPtr("base64"), common.Uint64Ptr(1)
			if _, err := c.PublishMessage(encoded); err != nil {
				t.Errorf("PublishMessage with base64: %v", err)
			}
		})
	}
}

// The codes that the documents list for these calls.
func TestRefusedOfDevices(t *testing.T) {
	a := environment(t)
	nobody := a
	nobody.product = "NONE123456"
	updated := func(a account, state string, change func(*iotcloud.UpdateDeviceShadowRequest)) func(*iotcloud.Client) error {
		return func(c *iotcloud.Client) error {
			r := a.update(state, 0)
			if change != nil {
				change(r)
			}
			_, err := c.UpdateDeviceShadow(r)
			return err
		}
	}
	calls := 0
	published := func(r *iotcloud.PublishMessageRequest) func(*iotcloud.Client) error {
		return func(c *iotcloud.Client) error {
			calls++ // an equal call in the same second has the same signature
			r.Payload = common.StringPtr(fmt.Sprint("message ", calls))
			_, err := c.PublishMessage(r)
			return err
		}
	}
	const open = `{"desired":{"state":"open"}}`
	other := a.publish(door, "event", "x")
	other.DeviceName = common.StringPtr("door-2")
	for _, test := range []struct {
		name, want string
		call       func(*iotcloud.Client) error
	}{
		{"no such product", "ResourceNotFound.ProductOrDeviceNotExist", updated(nobody, open, nil)},
		{"no such device", "ResourceNotFound.ProductOrDeviceNotExist", updated(a, open, func(r *iotcloud.UpdateDeviceShadowRequest) { r.DeviceName = common.StringPtr("nobody") })},
		{"no device", "MissingParameter", updated(a, open, func(r *iotcloud.UpdateDeviceShadowRequest) { r.DeviceName = nil })},
		{"no JSON", "InvalidParameterValue.InvalidJSON", updated(a, "open", nil)},
		{"reported", "InvalidParameterValue.JSONHasInvalidNode", updated(a, `{"reported":{}}`, nil)},
		{"nothing desired", "InvalidParameterValue.ParamIncomplete", updated(a, `{}`, nil)},
		{"too deep", "InvalidParameterValue.JSONLevelExceedLimit", updated(a, `{"desired":{"a":{"b":{"c":{"d":{"e":{}}}}}}}`, nil)},
		{"topic of another device", "FailedOperation.InvalidTopicName", published(other)},
		{"message to no device", "ResourceNotFound.ProductOrDeviceNotExist", published(a.publish("nobody", "event", "x"))},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, w := range ways {
				wantCode(t, test.call(a.client(t, w)), test.want)
			}
		})
	}
}
