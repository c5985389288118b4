package mqtt

// strikesToReject is how often in a row the broker must drop a message that is alone.
const strikesToReject = 3

// trial is the evidence against the one message of a lane that is tried alone. It decides on what it is told, and
// knows neither clock nor connection.
//
// Brokers restart, fail over and lose their minds; none of that may condemn a message. A strike counts when
//
//  1. the connection is fresh and the broker has answered a round trip on it just before,
//  2. then this message was sent, alone, and the broker closed the connection before its PUBACK,
//  3. the very next try to connect succeeded, a round trip included, and
//  4. a shared connection was up when the message was first sent like this, and none has ended since.
//
// After three strikes without anything else in between the message is rejected. A try to connect that fails, or the
// end of a shared connection, takes all strikes back. So a broker would have to go down and come back three times,
// each time within the moment between a round trip and a PUBACK, keep its other clients, and never be found closed. A
// message whose evidence stays unclear is kept and tried on.
type trial struct {
	accused *item
	strikes int
	// before is what the shared connections looked like when the accused was first sent.
	before witness
	// drop is the last drop, which is a strike if the next connection is well; nil for none.
	drop error
}

// witness is what shared connections tell of the broker.
type witness struct {
	// up says whether one is up.
	up bool
	// ended is how many have ended so far, other than in order.
	ended uint64
}

// begin begins the trial of a message, or goes on with it. It comes before the message is sent, alone, on a fresh
// connection.
func (t *trial) begin(accused *item, now witness) {
	if t.accused != accused {
		*t = trial{accused: accused, before: now}
	}
}

// dropped tells that the broker has ended the connection instead of acknowledging the accused.
func (t *trial) dropped(cause error) { t.drop = cause }

// connected tells that the broker has taken a new connection and answered a round trip on it. It returns the last drop
// where that was the strike that rejects the accused; then the trial is over.
func (t *trial) connected(now witness) (verdict error) {
	if t.drop == nil {
		return nil
	}
	drop := t.drop
	t.drop = nil
	if !t.before.up || now.ended != t.before.ended {
		t.end()
		return nil
	}
	t.strikes++
	if t.strikes < strikesToReject {
		return nil
	}
	t.end()
	return drop
}

// end ends the trial without a verdict.
func (t *trial) end() { *t = trial{} }

// blind says whether a trial is on that can find nothing out, because no shared connection was up when it began.
func (t *trial) blind() bool { return t.accused != nil && !t.before.up }
