package qcloud

import (
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testDevice = Device{ProductID: "ABCDE12345", DeviceName: "door-1"}

// Calls about devices in V2, and what is wrong with them.
func TestDeviceCallsV2(t *testing.T) {
	about := func(action string, more map[string]string) map[string]string {
		params := map[string]string{"Action": action, "productID": testDevice.ProductID, "deviceName": testDevice.DeviceName}
		maps.Copy(params, more)
		return common(params)
	}
	missing := func(code, text, name string) string {
		return failureV2JSON(4000, "InvalidParameter", "（"+code+"）"+text+": "+name+": is missing")
	}
	illegal := func(code, what string) string {
		return failureV2JSON(4000, "InvalidParameterValue", "（"+code+"）请求参数非法: "+what)
	}
	mistyped := func(code, what string) string {
		return failureV2JSON(4000, "InvalidParameter", "（"+code+"）请求参数非法: "+what)
	}
	const state = `{"desired":{"n":1}}`
	const topic = "ABCDE12345/door-1/event"
	message := map[string]string{"topic": topic, "payload": "close"}
	with := func(params map[string]string, name, value string) map[string]string {
		params = maps.Clone(params)
		params[name] = value
		return params
	}
	for _, tc := range []struct {
		name    string
		action  string
		more    map[string]string
		without string
		want    Request
		answer  string
	}{
		{"get", "GetDeviceShadow", nil, "", &GetDeviceShadow{testDevice}, ""},
		{"get: no productID", "GetDeviceShadow", nil, "productID", nil, missing("5000", textIncomplete, "productID")},
		{"get: no deviceName", "GetDeviceShadow", nil, "deviceName", nil, missing("5000", textIncomplete, "deviceName")},
		{"get by its name in V3", "DescribeDeviceShadow", nil, "", nil, failureV2JSON(4000, "InvalidAction", `there is no such action: Action: "DescribeDeviceShadow" is none of this version's`)},

		{"update", "UpdateDeviceShadow", map[string]string{"state": state}, "", &UpdateDeviceShadow{Device: testDevice, State: state}, ""},
		{"update of a version", "UpdateDeviceShadow", map[string]string{"state": state, "version": "9007199254740993"}, "", &UpdateDeviceShadow{testDevice, state, 9007199254740993}, ""},
		{"update of no version", "UpdateDeviceShadow", map[string]string{"state": state, "version": ""}, "", &UpdateDeviceShadow{Device: testDevice, State: state}, ""},
		{"update: no state", "UpdateDeviceShadow", nil, "", nil, missing("5000", textIncomplete, "state")},
		{"update: version of words", "UpdateDeviceShadow", map[string]string{"state": state, "version": "last"}, "", nil, mistyped("5101", "version: must be an integer")},
		{"update: negative version", "UpdateDeviceShadow", map[string]string{"state": state, "version": "-1"}, "", nil, illegal("5101", "version: must be 0 to 9223372036854775807")},
		{"update: version beyond numbers", "UpdateDeviceShadow", map[string]string{"state": state, "version": "9223372036854775808"}, "", nil, illegal("5101", "version: is out of range")},

		{"publish", "Publish", message, "", &Publish{testDevice, topic, []byte("close")}, ""},
		{"publish nothing", "Publish", with(message, "payload", ""), "", &Publish{testDevice, topic, []byte{}}, ""},
		{"publish with QoS", "Publish", with(message, "qos", "1"), "", &Publish{testDevice, topic, []byte("close")}, ""},
		{"publish base64", "Publish", with(with(message, "payload", "AP8="), "payloadEncoding", "base64"), "", &Publish{testDevice, topic, []byte{0, 255}}, ""},
		{"publish: no topic", "Publish", message, "topic", nil, missing("7101", textBadRequest, "topic")},
		{"publish: no payload", "Publish", message, "payload", nil, missing("7101", textBadRequest, "payload")},
		{"publish: no deviceName", "Publish", message, "deviceName", nil, missing("7101", textBadRequest, "deviceName")},
		{"publish: QoS 2", "Publish", with(message, "qos", "2"), "", nil, illegal("7101", "qos: must be 0 to 1")},
		{"publish: QoS of words", "Publish", with(message, "qos", "once"), "", nil, mistyped("7101", "qos: must be an integer")},
		{"publish: no base64", "Publish", with(with(message, "payload", "AP8"), "payloadEncoding", "base64"), "", nil, illegal("7101", "payload: must be base64, as payloadEncoding says: illegal base64 data at input byte 0")},
		{"publish: another encoding", "Publish", with(message, "payloadEncoding", "hex"), "", nil, illegal("7101", `payloadEncoding: must be "base64" or empty`)},
		{"publish by its name in V3", "PublishMessage", message, "", nil, failureV2JSON(4000, "InvalidAction", `there is no such action: Action: "PublishMessage" is none of this version's`)},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(tc.name+" "+method, func(t *testing.T) {
				params := about(tc.action, tc.more)
				delete(params, tc.without)
				v, _ := newTestVerifier(Options{})
				got, failure := answer(t, v, V2, signedForm(method, V2, params))
				wantDecoded(t, got, failure, tc.want, tc.answer)
			})
		}
	}
}

func TestDeviceCallsV3(t *testing.T) {
	const device = `{"ProductId":"ABCDE12345","DeviceName":"door-1"`
	const update = device + `,"State":"{\"desired\":{\"n\":1}}"`
	const message = device + `,"Topic":"ABCDE12345/door-1/event","Payload":"close 门"`
	const state, topic = `{"desired":{"n":1}}`, "ABCDE12345/door-1/event"
	for _, tc := range []struct {
		name, action, body string
		want               Request
		answer             string
	}{
		{"get", "DescribeDeviceShadow", device + "}", &GetDeviceShadow{testDevice}, ""},
		{"get: no DeviceName", "DescribeDeviceShadow", `{"ProductId":"ABCDE12345"}`, nil, failureV3JSON("MissingParameter", "DeviceName: is missing")},
		{"get by its name in V2", "GetDeviceShadow", device + "}", nil, failureV3JSON("InvalidAction", `Action: "GetDeviceShadow" is none of this version's`)},
		{"update", "UpdateDeviceShadow", update + `}`, &UpdateDeviceShadow{Device: testDevice, State: state}, ""},
		{"update of a version", "UpdateDeviceShadow", update + `,"ShadowVersion":7,"Prefix":"$shadow"}`, &UpdateDeviceShadow{testDevice, state, 7}, ""},
		{"update: negative version", "UpdateDeviceShadow", update + `,"ShadowVersion":-7}`, nil, failureV3JSON("InvalidParameterValue", "ShadowVersion: must be 0 to 9223372036854775807")},
		{"update: another prefix", "UpdateDeviceShadow", update + `,"Prefix":"$template"}`, nil, failureV3JSON("InvalidParameterValue", `Prefix: must be "$shadow"`)},
		{"update: state an object", "UpdateDeviceShadow", device + `,"State":{"desired":{}}}`, nil, failureV3JSON("InvalidParameter", "State: must be a string, it is an object")},
		{"publish", "PublishMessage", message + `}`, &Publish{testDevice, topic, []byte("close 门")}, ""},
		{"publish with all", "PublishMessage", strings.Replace(message, "close 门", "AP8=", 1) + `,"Qos":0,"PayloadEncoding":"base64"}`, &Publish{testDevice, topic, []byte{0, 255}}, ""},
		{"publish: QoS 2", "PublishMessage", message + `,"Qos":2}`, nil, failureV3JSON("InvalidParameterValue", "Qos: must be 0 to 1")},
		{"publish: another encoding", "PublishMessage", message + `,"PayloadEncoding":"hex"}`, nil, failureV3JSON("InvalidParameterValue", `PayloadEncoding: must be "base64" or empty`)},
		{"publish: encoding a number", "PublishMessage", message + `,"PayloadEncoding":64}`, nil, failureV3JSON("InvalidParameter", "PayloadEncoding: must be a string, it is a number")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, _ := newTestVerifier(Options{})
			got, failure := answer(t, v, V3, signedJSON(t, tc.action, tc.body))
			wantDecoded(t, got, failure, tc.want, tc.answer)
		})
	}
}

func wantDecoded(t *testing.T, got Request, failure string, want Request, wantFailure string) {
	t.Helper()
	if failure != "" || wantFailure != "" {
		wantAnswer(t, failure, wantFailure)
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

// A payload that is not signed, as clients do with "@", is not sent to a device.
func TestUnsignedDeviceParameters(t *testing.T) {
	good := map[string]string{
		"Action": "Publish", "productID": "ABCDE12345", "deviceName": "door-1", "topic": "ABCDE12345/door-1/event", "payload": "x", "qos": "0", "payloadEncoding": "",
		"state": "{}", "version": "0", "prefix": "$shadow",
	}
	for name := range good {
		if name == "Action" {
			continue
		}
		params := common(good)
		params[name] = "@x"
		signed := maps.Clone(params)
		delete(signed, name)
		params["Signature"] = Sign("", testKey, StringToSign(http.MethodPost, testHost, V2.Path(), signed))
		v, _ := newTestVerifier(Options{})
		if _, failure := answer(t, v, V2, form(http.MethodPost, V2, params)); !strings.Contains(failure, `"code":4100`) {
			t.Errorf("%s is not signed, and the answer is %s", name, failure)
		}
	}
}
