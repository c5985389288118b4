// Package mqtt keeps connections to a broker. A Pool publishes on them with QoS 1,
// so that every message ends with exactly one result: the broker acknowledged
// it, refused it for good, or nobody waited for it any longer. A Subscriber
// receives, and its user says when a message is acknowledged.
//
// # What counts as delivered
//
// A PUBACK, and nothing else. The connections are those of
// github.com/eclipse/paho.mqtt.golang, used in the one way in which a token of
// a publish cannot complete without an error unless its PUBACK came:
//
//   - Automatic reconnect is off and every connection has its own client. With
//     it on, paho takes up the old packet identifiers on the new connection and
//     completes the tokens it replaces (claimID) without an error.
//   - A Pool's session is clean and the store is empty (see noStore), so nothing is
//     resumed: resume is the only caller of claimID.
//   - What is left then completes a QoS 1 token without an error in one place,
//     the arrival of a PUBACK with its identifier. Every other way carries an
//     error that is set before the token completes: a failed write, a Publish
//     that could not hand over its packet within the write time-out (it was not
//     sent), and cleanUp, which runs once the goroutine that reads PUBACKs has
//     ended. An identifier stays taken until its PUBACK or cleanUp, so a late
//     PUBACK cannot meet another message.
//   - One kind of token never completes: Publish that finds the client being
//     disconnected returns it without sending, and cleanUp may have run already.
//     So nothing here waits for a token alone, but always for the end of the
//     connection as well.
//
// A PUBACK says that the broker has taken the message, not that a device has it.
//
// # How a message travels
//
// Messages wait in one queue, which the shared connections empty. A connection
// that is lost hands back what it had in flight. What the broker may have
// dropped the connection for goes on in a lane of its product (see quarantine), where it can
// harm only itself; the rest returns to the queue. A message that is not
// acknowledged although later ones are goes on on a connection apart, so that
// it does not end a shared one again and again.
package mqtt
