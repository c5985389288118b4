package qcloud

import (
	"encoding/base64"
	"encoding/json"
	"math"
)

// Device names the device that a call is about. Whether there is one is not decided
// here.
type Device struct {
	ProductID, DeviceName string
}

// GetDeviceShadow asks for the shadow of a device: GetDeviceShadow in V2,
// DescribeDeviceShadow in V3.
type GetDeviceShadow struct{ Device }

// UpdateDeviceShadow asks for a change to the desired part of a device's shadow.
type UpdateDeviceShadow struct {
	Device
	// State is a text that should hold {"desired":…}.
	State string
	// Version is the version that the change is made for (V2 version, V3
	// ShadowVersion), at least 0; 0, also where the caller gives none, is any.
	Version int64
}

// Publish asks for a message to be sent to a device: Publish in V2, PublishMessage in
// V3.
type Publish struct {
	Device
	// Topic is the whole topic, as the caller wrote it.
	Topic string
	// Payload is the content of the message, after PayloadEncoding was undone.
	Payload []byte
}

func (*GetDeviceShadow) request()    {}
func (*UpdateDeviceShadow) request() {}
func (*Publish) request()            {}

func (d *decoder) device(call object) Device {
	return Device{ProductID: d.text(call, "productID"), DeviceName: d.text(call, "deviceName")}
}

func (d *decoder) updateDeviceShadow(call object) *UpdateDeviceShadow {
	update := &UpdateDeviceShadow{Device: d.device(call), State: d.text(call, "state")}
	update.Version = d.optionalWithin(call, "version", math.MaxInt64)
	if prefix := d.optional(call, "prefix"); prefix != "" && prefix != "$shadow" {
		d.fail(KindInvalidValue, "prefix", `must be "$shadow"`)
	}
	return update
}

func (d *decoder) publish(call object) *Publish {
	message := &Publish{Device: d.device(call), Topic: d.text(call, "topic"), Payload: []byte(d.text(call, "payload"))}
	d.optionalWithin(call, "qos", 1)
	switch d.optional(call, "payloadEncoding") {
	case "":
	case "base64":
		var err error
		if message.Payload, err = base64.StdEncoding.DecodeString(string(message.Payload)); err != nil {
			d.fail(KindInvalidValue, "payload", "must be base64, as payloadEncoding says: %v", err)
		}
	default:
		d.fail(KindInvalidValue, "payloadEncoding", `must be "base64" or empty`)
	}
	return message
}

// optionalWithin reads a number from 0 to most, 0 where there is none.
func (d *decoder) optionalWithin(o object, name string, most int64) int64 {
	n := d.integer(o, name, 64, false)
	if n < 0 || n > most {
		d.fail(KindInvalidValue, o.path+name, "must be 0 to %d", most)
	}
	return n
}

// ShadowResult is the result of [GetDeviceShadow] and [UpdateDeviceShadow].
type ShadowResult struct {
	// Data is a JSON object with type, result, timestamp and payload: an object in V2,
	// a text that holds it in V3.
	Data json.RawMessage
}

// PublishResult is the result of [Publish].
type PublishResult struct{}

func (r ShadowResult) v2(outcome outcomeV2) any { return dataV2{r.Data, outcome} }

func (r ShadowResult) v3(requestID string) any {
	return struct {
		Data      string `json:"Data"`
		RequestID string `json:"RequestId"`
	}{string(r.Data), requestID}
}

func (PublishResult) v2(outcome outcomeV2) any { return outcome }

func (PublishResult) v3(requestID string) any { return emptyV3{requestID} }
