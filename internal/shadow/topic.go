package shadow

// What the topics of shadows begin with; product ID and device name follow, each a
// level.
const (
	// OperationPrefix begins the topics that devices publish to.
	OperationPrefix = "$shadow/operation/"
	// ResultPrefix begins the topics of answers and deltas.
	ResultPrefix = "$shadow/operation/result/"
)

// ResultTopic returns the topic on which a device gets answers and deltas.
func ResultTopic(productID, deviceName string) string {
	return ResultPrefix + productID + "/" + deviceName
}
