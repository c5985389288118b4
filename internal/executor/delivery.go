package executor

import (
	"errors"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
)

// delivery is the message to one device on its way to the broker.
type delivery struct {
	run     *run
	seq     uint64
	topic   string
	payload []byte
}

var _ mqtt.Delivery = (*delivery)(nil)

// Source is the product of the task.
func (d *delivery) Source() mqtt.Source {
	return mqtt.Source{Tenant: d.run.task.Product.Namespace, Product: d.run.task.Product.ProductID, Task: d.run}
}

// Topic is the whole MQTT topic.
func (d *delivery) Topic() string { return d.topic }

// Payload is the content of the message.
func (d *delivery) Payload() []byte { return d.payload }

// Live reports whether the run still waits for the result, and may still send it.
func (d *delivery) Live() bool { return !d.run.dead.Load() && d.run.task.Hold.Valid() }

// Settle takes the result. A nil error is the broker's acknowledgement, the only
// evidence by which a device counts as succeeded.
func (d *delivery) Settle(err error) {
	defer d.run.caught() // this is a goroutine of all tasks
	switch {
	case err == nil:
		d.run.landed(d.seq, succeeded, "", "")
	case errors.Is(err, mqtt.ErrAbandoned):
		d.run.landed(d.seq, pending, "", "")
	default:
		d.run.landed(d.seq, failed, v1alpha1.ReasonPublishRejected, err.Error())
	}
}

// judge tells what an error of the fleet store means for its device. Only what
// the store knows to be final is; anything else is tried again.
func judge(err error) (res result, reason, message string) {
	var final *fleet.DeviceError
	switch {
	case err == nil:
		return succeeded, "", ""
	case errors.Is(err, fleet.ErrDeviceGone):
		return gone, "", ""
	case errors.As(err, &final):
		return failed, final.Reason, final.Message
	default:
		return pending, "", ""
	}
}
