package shim_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/simulator"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/test/system"
)

const textNoDevice = "用户不存在此产品或设备"

// newDevice makes a device of the caller's product with a shadow that it has reported.
func (c *caller) newDevice(t *testing.T, name string, s *v1alpha1.DeviceShadow) *v1alpha1.Device {
	t.Helper()
	device := testobj.Device(strings.NewReplacer(":", "-").Replace(strings.ToLower(name))).In(c.namespace).Product(c.productID).Obj()
	device.Spec.DeviceName = name
	if err := c.f.Env.Client.Create(t.Context(), device); err != nil {
		t.Fatal(err)
	}
	if s != nil {
		device.Status.Shadow = s
		if err := c.f.Env.Client.Status().Update(t.Context(), device); err != nil {
			t.Fatal(err)
		}
	}
	return device
}

// connect connects devices of the caller's product.
func (c *caller) connect(t *testing.T, broker string, names ...string) *simulator.Fleet {
	t.Helper()
	fleet, err := simulator.Start(t.Context(), simulator.Options{BrokerURL: broker, ProductID: c.productID, Names: names, Keep: 100})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fleet.Close)
	return fleet
}

// about are the parameters of a call about a device.
func (c *caller) about(action, device string, more map[string]string) map[string]string {
	params := map[string]string{"Action": action, "productID": c.productID, "deviceName": device}
	maps.Copy(params, more)
	return params
}

// aboutV3 is the body of such a call in V3.
func (c *caller) aboutV3(t *testing.T, device string, more map[string]any) string {
	t.Helper()
	params := map[string]any{"ProductId": c.productID, "DeviceName": device}
	maps.Copy(params, more)
	body, err := json.Marshal(params)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// data returns the data of an answer of V2 without its times, which it checks.
func data(t *testing.T, answer map[string]any) string {
	t.Helper()
	told, ok := answer["data"].(map[string]any)
	if !ok {
		t.Fatalf("answer %v, want data", answer)
	}
	if at, _ := told["timestamp"].(float64); at < 1.7e9 || at > 1e10 {
		t.Errorf("timestamp %v, want Unix seconds", told["timestamp"])
	}
	payload, _ := told["payload"].(map[string]any)
	if at, _ := payload["timestamp"].(float64); at != 0 && at < 1.7e12 {
		t.Errorf("payload.timestamp %v, want Unix milliseconds", payload["timestamp"])
	}
	if _, ok := payload["metadata"].(map[string]any); !ok {
		t.Errorf("payload %v, want metadata", payload)
	}
	text, err := json.Marshal([]any{told["type"], told["result"], payload["state"], payload["version"]})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// dataV3 is data of an answer of V3.
func dataV3(t *testing.T, answer map[string]any) string {
	t.Helper()
	text, _ := answer["Data"].(string)
	var told map[string]any
	if err := json.Unmarshal([]byte(text), &told); err != nil {
		t.Fatalf("answer %v, want Data: %v", answer, err)
	}
	return data(t, map[string]any{"data": told})
}

func want(t *testing.T, what, want, got string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// wantDeltas waits until the device has been sent these deltas, of which it tells
// state and version, and nothing else.
func wantDeltas(t *testing.T, fleet *simulator.Fleet, device string, want ...string) {
	t.Helper()
	system.WaitFor(t, "the deltas of "+device, func() (bool, any) {
		var got []string
		for _, m := range fleet.Received(device) {
			var delta struct {
				Type    string
				Payload struct {
					State   json.RawMessage
					Version int64
				}
			}
			if err := json.Unmarshal([]byte(m.Payload), &delta); err != nil || delta.Type != "delta" || !strings.HasPrefix(m.Topic, "$shadow/operation/result/") {
				t.Fatalf("message %v, want a delta", m)
			}
			got = append(got, fmt.Sprintf("%d %s", delta.Payload.Version, delta.Payload.State))
		}
		return cmp.Equal(want, got), got
	})
}

// The life of a shadow as an application sees it, in both versions, and what its
// device hears of it.
func TestShadowCalls(t *testing.T) {
	s := system.Run(t)
	broker := mqtttest.StartMosquitto(t)
	f := startFront(t, s, settings{broker: broker.URL()})
	c := f.newCaller(t)
	const old = `{"timestamp":1700000000000}`
	c.newDevice(t, "Door:1", &v1alpha1.DeviceShadow{
		Reported: `{"state":"closed","n":1}`, Metadata: `{"reported":{"state":` + old + `,"n":` + old + `}}`, Version: 7, Timestamp: 1700000000000,
	})
	fleet := c.connect(t, broker.URL(), "Door:1")
	get := c.about("GetDeviceShadow", "Door:1", nil)
	update := func(state, version string) map[string]any {
		return c.v2(t, "POST", c.about("UpdateDeviceShadow", "Door:1", map[string]string{"state": state, "version": version}))
	}
	updateV3 := func(state string, version int64) map[string]any {
		return c.v3(t, "UpdateDeviceShadow", c.aboutV3(t, "Door:1", map[string]any{"State": state, "ShadowVersion": version}))
	}

	want(t, "the shadow", `["get",0,{"reported":{"n":1,"state":"closed"}},7]`, data(t, c.v2(t, "GET", get)))
	answer := update(`{"desired":{"state":"open","n":1}}`, "")
	if answer["code"] != 0.0 || answer["codeDesc"] != "Success" {
		t.Errorf("UpdateDeviceShadow is answered %v", answer)
	}
	want(t, "of any version", `["update",0,{"desired":{"n":1,"state":"open"}},8]`, data(t, answer))
	wantDeltas(t, fleet, "Door:1", `8 {"state":"open"}`)
	want(t, "of this version", `["update",0,{"desired":{"lamp":{"on":true}}},9]`, data(t, update(`{"desired":{"lamp":{"on":true}}}`, "8")))
	const whole = `{"delta":{"lamp":{"on":true},"state":"open"},"desired":{"lamp":{"on":true},"n":1,"state":"open"},"reported":{"n":1,"state":"closed"}},9]`
	want(t, "the whole shadow", `["get",0,`+whole, data(t, c.v2(t, "POST", get)))
	want(t, "the whole shadow in V3", `["get",0,`+whole, dataV3(t, c.v3(t, "DescribeDeviceShadow", c.aboutV3(t, "Door:1", nil))))

	answer = update(`{"desired":{"state":"ajar"}}`, "8")
	if text, _ := answer["message"].(string); answer["code"] != 4000.0 || answer["codeDesc"] != "UpdateVersionNotMatch" || !strings.HasPrefix(text, "（5005）更新版本不匹配: version: ") {
		t.Errorf("an update of an older version is answered %v", answer)
	}
	want(t, "of an older version: the whole shadow", `["update",5005,`+whole, data(t, answer))
	wantErrorV3(t, updateV3(`{"desired":{"state":"ajar"}}`, 8), "FailedOperation.UpdateVersionNotMatch", "ShadowVersion: ")

	want(t, "in V3", `["update",0,{"desired":{"lamp":null,"state":"closed"}},10]`, dataV3(t, updateV3(`{"desired":{"lamp":null,"state":"closed"}}`, 9)))
	// Nothing differs now from what the device has reported, so it hears nothing.
	want(t, "in V3, cleared", `["update",0,{"desired":null},11]`, dataV3(t, updateV3(`{"desired":null}`, 0)))
	want(t, "cleared", `["get",0,{"reported":{"n":1,"state":"closed"}},11]`, data(t, c.v2(t, "GET", get)))
	if last, _ := updateV3(`{"desired":{"x":12345678901234567890}}`, 11)["Data"].(string); !strings.Contains(last, `"state":{"desired":{"x":12345678901234567890}}`) {
		t.Errorf("an update of a long number is answered %s", last)
	}
	wantDeltas(t, fleet, "Door:1", `8 {"state":"open"}`, `9 {"lamp":{"on":true},"state":"open"}`, `12 {"x":12345678901234567890}`)

	// A device that has none yet has an empty one, and an update makes it.
	c.newDevice(t, "new", nil)
	want(t, "a new shadow", `["get",0,{"reported":{}},0]`, data(t, c.v2(t, "GET", c.about("GetDeviceShadow", "new", nil))))
	want(t, "the first update", `["update",0,{"desired":{"a":1}},1]`, data(t, c.v2(t, "POST", c.about("UpdateDeviceShadow", "new", map[string]string{"state": `{"desired":{"a":1}}`}))))
	if log := f.log.String(); strings.Contains(log, "ajar") || strings.Contains(log, "lamp") {
		t.Errorf("the log tells what is meant for devices:\n%s", log)
	}
}

// Messages arrive as they were sent, and only once the broker has them the caller is
// told so.
func TestPublish(t *testing.T) {
	s := system.Run(t)
	broker := mqtttest.StartMosquitto(t)
	f := startFront(t, s, settings{broker: broker.URL()})
	c := f.newCaller(t)
	for _, name := range []string{"door-1", "door-2"} {
		c.newDevice(t, name, nil)
	}
	fleet := c.connect(t, broker.URL(), "door-1", "door-2")
	topic := c.productID + "/door-1/event"
	payloads := []string{"close", ` 100% "a=b" & c+d; {} 门 é` + "\n", "", "\x00\xff", "from V3", strings.Repeat("x", 16384)}
	send := func(params map[string]string) {
		t.Helper()
		if got := c.v2(t, "POST", params); got["code"] != 0.0 {
			t.Errorf("Publish is answered %v", got)
		}
	}
	for _, payload := range payloads[:3] {
		send(c.about("Publish", "door-1", map[string]string{"topic": topic, "payload": payload}))
	}
	binary := base64.StdEncoding.EncodeToString([]byte(payloads[3]))
	for _, more := range []map[string]any{
		{"Topic": topic, "Payload": binary, "PayloadEncoding": "base64", "Qos": 1},
		{"Topic": topic, "Payload": payloads[4]},
	} {
		if got := c.v3(t, "PublishMessage", c.aboutV3(t, "door-1", more)); got["Error"] != nil {
			t.Errorf("PublishMessage is answered %v", got)
		}
	}
	send(c.about("Publish", "door-1", map[string]string{"topic": topic, "payload": payloads[5], "qos": "0"}))
	system.WaitFor(t, "the messages", func() (bool, any) {
		got := map[string]int{}
		for _, m := range fleet.Received("door-1") {
			if m.Topic != topic {
				t.Fatalf("a message on %s", m.Topic)
			}
			got[m.Payload]++
		}
		for _, payload := range payloads {
			if got[payload] != 1 {
				return false, got
			}
		}
		return len(got) == len(payloads), got
	})
	if got := fleet.Received("door-2"); len(got) > 0 {
		t.Errorf("another device received %v", got)
	}
}

// Each bad call about a device has its code, changes nothing and sends nothing.
func TestBadDeviceCalls(t *testing.T) {
	s := system.Run(t)
	broker := mqtttest.StartMosquitto(t)
	f := startFront(t, s, settings{broker: broker.URL()})
	c := f.newCaller(t)
	device := c.newDevice(t, "door-1", &v1alpha1.DeviceShadow{Desired: `{"kept":"` + strings.Repeat("k", 12000) + `"}`, Version: 3, Timestamp: 1700000000000})
	fleet := c.connect(t, broker.URL(), "door-1")
	long := strings.Repeat("x", 16385)
	state := func(text string) map[string]string { return map[string]string{"state": text} }
	message := func(topic, payload string) map[string]string {
		return map[string]string{"topic": topic, "payload": payload}
	}
	own := c.productID + "/door-1/"
	const get, update, publish = "GetDeviceShadow", "UpdateDeviceShadow", "Publish"
	const open = `{"desired":{"state":"open"}}`
	inV3 := map[string]string{get: "DescribeDeviceShadow", update: "UpdateDeviceShadow", publish: "PublishMessage"}
	namesV3 := map[string]string{"productID": "ProductId", "deviceName": "DeviceName", "state": "State", "version": "ShadowVersion", "topic": "Topic", "payload": "Payload"}
	for _, row := range []struct {
		name, action string
		set          map[string]string
		public       float64
		message      string
		v3           string
	}{
		{"no such device", get, map[string]string{"deviceName": "door-2"}, 5000, "（5102）" + textNoDevice + ": deviceName: ", "ResourceNotFound.ProductOrDeviceNotExist"},
		{"no such product", get, map[string]string{"productID": "NOSUCH1234"}, 5000, "（5102）" + textNoDevice + ": productID: ", "ResourceNotFound.ProductOrDeviceNotExist"},
		{"name that none has", get, map[string]string{"deviceName": "door/1"}, 4000, "（5101）请求参数非法: deviceName: ", "InvalidParameterValue"},
		{"long name", get, map[string]string{"deviceName": long[:49]}, 4000, "（5101）请求参数非法: deviceName: ", "InvalidParameterValue"},
		{"product that none has", get, map[string]string{"productID": "a,b=c"}, 4000, "（5101）请求参数非法: productID: ", "InvalidParameterValue"},

		{"update of no device", update, map[string]string{"deviceName": "door-2", "state": open}, 5000, "（5102）" + textNoDevice + ": deviceName: ", "ResourceNotFound.ProductOrDeviceNotExist"},
		{"empty state", update, state(""), 4000, "（5004）State不是合法的JSON对象: state: ", "InvalidParameterValue.InvalidJSON"},
		{"broken state", update, state("{"), 4000, "（5004）State不是合法的JSON对象: state: ", "InvalidParameterValue.InvalidJSON"},
		{"array for a state", update, state("[]"), 4000, "（5004）State不是合法的JSON对象: state: ", "InvalidParameterValue.InvalidJSON"},
		{"nothing desired", update, state("{}"), 4000, "（5000）请求中缺少关键字段信息: state: ", "InvalidParameterValue.ParamIncomplete"},
		{"reported", update, state(`{"reported":{"state":"open"}}`), 4000, "（5003）State JSON对象中包含非法节点: state: ", "InvalidParameterValue.JSONHasInvalidNode"},
		{"desired and reported", update, state(`{"desired":{},"reported":{}}`), 4000, "（5003）State JSON对象中包含非法节点: state: ", "InvalidParameterValue.JSONHasInvalidNode"},
		{"desired as a string", update, state(`{"desired":"open"}`), 4000, "（5003）State JSON对象中包含非法节点: state: ", "InvalidParameterValue.JSONHasInvalidNode"},
		{"empty key", update, state(`{"desired":{"":1}}`), 4000, "（5003）State JSON对象中包含非法节点: state: ", "InvalidParameterValue.JSONHasInvalidNode"},
		{"too deep", update, state(`{"desired":{"a":{"b":{"c":{"d":{"e":{}}}}}}}`), 4000, "（5002）State JSON对象的层数超过了限制: state: ", "InvalidParameterValue.JSONLevelExceedLimit"},
		{"too large alone", update, state(`{"desired":{"a":"` + long + `"}}`), 4000, "（5006）State JSON对象超过大小限制: state: ", "InvalidParameterValue.JSONSizeExceedLimit"},
		{"too large with what is there", update, state(`{"desired":{"a":"` + long[:8000] + `"}}`), 4000, "（5006）State JSON对象超过大小限制: state: ", "InvalidParameterValue.JSONSizeExceedLimit"},
		{"older version", update, map[string]string{"state": open, "version": "2"}, 4000, "（5005）更新版本不匹配: version: ", "FailedOperation.UpdateVersionNotMatch"},

		{"topic of another device", publish, message(c.productID+"/door-2/event", "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"topic of another product", publish, message("OTHER/door-1/event", "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"topic of the shadow", publish, message("$shadow/operation/result/"+c.productID+"/door-1", "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"topic name alone", publish, message("event", "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"topic with a wildcard", publish, message(own+"#", "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"topic of two levels", publish, message(own+"event/x", "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"long topic", publish, message(own+long[:129], "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"topic that the product has not", publish, message(own+"other", "x"), 4000, "（7000）消息topic非法: topic: ", "FailedOperation.InvalidTopicName"},
		{"long payload", publish, message(own+"event", long), 4000, "（7002）消息长度非法: payload: ", "FailedOperation.InvalidMsgLen"},
		{"message to no device", publish, map[string]string{"deviceName": "door-2", "topic": c.productID + "/door-2/event", "payload": "x"}, 5000, "（7102）" + textNoDevice + ": deviceName: ", "ResourceNotFound.ProductOrDeviceNotExist"},
		{"message to no product", publish, map[string]string{"productID": "NOSUCH1234", "topic": "NOSUCH1234/door-1/event", "payload": "x"}, 5000, "（7102）" + textNoDevice + ": productID: ", "ResourceNotFound.ProductOrDeviceNotExist"},
		{"product with a level", publish, map[string]string{"productID": c.productID + "/door-1", "topic": own + "door-1/event", "payload": "x"}, 4000, "（7101）请求参数非法: productID: ", "InvalidParameterValue"},
	} {
		t.Run(row.name, func(t *testing.T) {
			params := c.about(row.action, "door-1", row.set)
			got := c.v2(t, "POST", params)
			if text, _ := got["message"].(string); got["code"] != row.public || !strings.HasPrefix(text, row.message) || got["codeDesc"] == "" {
				t.Errorf("answer %v\nwant   code %v and a message that begins %q", got, row.public, row.message)
			}
			inBody := map[string]any{}
			for name, value := range params {
				if name != "Action" {
					inBody[namesV3[name]] = value
				}
			}
			wantErrorV3(t, c.v3(t, inV3[row.action], c.aboutV3(t, "door-1", inBody)), row.v3, "")
		})
	}
	if err := f.Env.Client.Get(t.Context(), keyOf(device), device); err != nil || device.Status.Shadow.Version != 3 {
		t.Errorf("the shadow was changed: %+v, error %v", device.Status.Shadow, err)
	}
	if got := fleet.Received("door-1"); len(got) > 0 {
		t.Errorf("the device received %v", got)
	}
}

// Nobody reads, changes or reaches the devices of another account, not even with a
// Product and Devices of the same names.
func TestDevicesOfOthers(t *testing.T) {
	s := system.Run(t)
	broker := mqtttest.StartMosquitto(t)
	f := startFront(t, s, settings{broker: broker.URL()})
	owner, other := f.newCaller(t), f.newCaller(t)
	device := owner.newDevice(t, "door-1", &v1alpha1.DeviceShadow{Reported: `{"secret":1}`, Version: 3, Timestamp: 1700000000000})
	fleet := owner.connect(t, broker.URL(), "door-1")
	thief := *other
	thief.productID = owner.productID
	try := func(public float64, shadows, messages string) {
		t.Helper()
		for _, params := range []map[string]string{
			thief.about("GetDeviceShadow", "door-1", nil),
			thief.about("UpdateDeviceShadow", "door-1", map[string]string{"state": `{"desired":{"a":1}}`}),
			thief.about("Publish", "door-1", map[string]string{"topic": owner.productID + "/door-1/event", "payload": "x"}),
		} {
			want := shadows
			if params["Action"] == "Publish" {
				want = messages
			}
			got := thief.v2(t, "POST", params)
			if text, _ := got["message"].(string); got["code"] != public || !strings.HasPrefix(text, want) || strings.Contains(fmt.Sprint(got), "secret") {
				t.Errorf("%s is answered %v, want code %v and %s", params["Action"], got, public, want)
			}
		}
	}
	try(5000, "（5102）", "（7102）")

	// A younger Product with the ID is not Ready.
	f.NextSecond(t, owner.namespace)
	copied := testobj.Product("copied").In(other.namespace).ID(owner.productID).Obj()
	if err := f.Env.Client.Create(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	thief.newDevice(t, "door-1", nil)
	system.WaitFor(t, "the conflict to be noticed", func() (bool, any) {
		err := f.Env.Client.Get(t.Context(), client.ObjectKeyFromObject(copied), copied)
		return err == nil && meta.IsStatusConditionFalse(copied.Status.Conditions, v1alpha1.ConditionReady) && !product.Ready(copied), err
	})
	try(6000, "（5100）", "（7001）")

	if err := f.Env.Client.Get(t.Context(), keyOf(device), device); err != nil || device.Status.Shadow.Version != 3 {
		t.Errorf("the shadow was changed: %+v, error %v", device.Status.Shadow, err)
	}
	if got := fleet.Received("door-1"); len(got) > 0 {
		t.Errorf("the device received %v", got)
	}
}
