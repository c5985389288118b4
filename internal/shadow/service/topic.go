package service

import (
	"strings"

	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/validation"
)

// filter is what the service subscribes to.
const filter = shadow.OperationPrefix + "+/+"

// device says whose shadow a message is about. Nothing but the topic says it, since
// the broker's access list holds a device to its own topics, and to nothing in what
// it writes there.
type device struct{ productID, name string }

// parseTopic reads $shadow/operation/{productID}/{deviceName}.
func parseTopic(topic string) (device, bool) {
	rest, ok := strings.CutPrefix(topic, shadow.OperationPrefix)
	if !ok {
		return device{}, false
	}
	product, name, _ := strings.Cut(rest, "/")
	return device{product, name}, validation.ProductID(product) && validation.DeviceName(name)
}

func (d device) resultTopic() string { return shadow.ResultTopic(d.productID, d.name) }
