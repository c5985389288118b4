package service

import (
	"regexp"
	"strings"
)

const (
	// filter is what the service subscribes to.
	filter = "$shadow/operation/+/+"
	// operationPrefix begins the topics that devices publish to, resultPrefix those of
	// the answers.
	operationPrefix = "$shadow/operation/"
	resultPrefix    = "$shadow/operation/result/"
)

var (
	productID  = regexp.MustCompile(`^[a-zA-Z0-9]{1,32}$`)
	deviceName = regexp.MustCompile(`^[a-zA-Z0-9:_-]{1,48}$`)
)

// device says whose shadow a message is about. Nothing but the topic says it, since
// the broker's access list holds a device to its own topics, and to nothing in what
// it writes there.
type device struct{ productID, name string }

// parseTopic reads $shadow/operation/{productID}/{deviceName}.
func parseTopic(topic string) (device, bool) {
	rest, ok := strings.CutPrefix(topic, operationPrefix)
	if !ok {
		return device{}, false
	}
	product, name, _ := strings.Cut(rest, "/")
	return device{product, name}, productID.MatchString(product) && deviceName.MatchString(name)
}

func (d device) resultTopic() string { return resultPrefix + d.productID + "/" + d.name }
