package shadow

import (
	"encoding/json"
	"errors"
)

// Result is the number by which an answer says what became of a message.
type Result int

// The results.
const (
	// ResultOK : the message was carried out.
	ResultOK Result = 0
	// ResultNoShadow : there is no such device, and so no shadow.
	ResultNoShadow Result = 5001
	// ResultTooDeep : more than MaxDepth levels.
	ResultTooDeep Result = 5002
	// ResultIllegalNode : a key or a value that cannot stand where it does.
	ResultIllegalNode Result = 5003
	// ResultNotJSON : no JSON, or not a message of a known type.
	ResultNotJSON Result = 5004
	// ResultVersion : the version differs; the answer holds the whole shadow.
	ResultVersion Result = 5005
	// ResultTooLarge : more than MaxBytes in a part, or MaxMessageBytes in all.
	ResultTooLarge Result = 5006
	// ResultInternal : the shadow could not be read or stored.
	ResultInternal Result = 5100
)

// ResultOf returns the result that tells a device of an error: ResultOK for nil,
// ResultInternal for errors of others.
func ResultOf(err error) Result {
	for _, known := range []struct {
		err    error
		result Result
	}{
		{nil, ResultOK},
		{ErrTooDeep, ResultTooDeep},
		{ErrIllegalKey, ResultIllegalNode},
		{ErrIllegalNode, ResultIllegalNode},
		{ErrNotJSON, ResultNotJSON},
		{ErrNotObject, ResultNotJSON},
		{ErrMessage, ResultNotJSON},
		{ErrVersion, ResultVersion},
		{ErrTooLarge, ResultTooLarge},
	} {
		if errors.Is(err, known.err) {
			return known.result
		}
	}
	return ResultInternal
}

// answer is what every answer holds.
type answer struct {
	Type        string          `json:"type,omitempty"`
	Result      Result          `json:"result"`
	Timestamp   int64           `json:"timestamp"`
	ClientToken json.RawMessage `json:"clientToken,omitempty"`
	Payload     *payload        `json:"payload,omitempty"`
}

type payload struct {
	State     Object `json:"state"`
	Metadata  Object `json:"metadata"`
	Version   int64  `json:"version"`
	Timestamp int64  `json:"timestamp"`
}

// AnswerGet answers a get with the whole shadow:
//
//	{"type":"get","result":0,"timestamp":s,"clientToken":"t","payload":{"state":{"reported":{…},"desired":{…},"delta":{…}},"metadata":{…},"version":n,"timestamp":ms}}
//
// "reported" is always there, "desired" where there is a desired part, "delta" where
// something of it differs. Here as in all answers nowSeconds is the time of the
// answer in Unix seconds, and the timestamps inside payload are Unix milliseconds.
func AnswerGet(m Message, doc *Document, nowSeconds int64) []byte {
	return encode(answer{m.Type, ResultOK, nowSeconds, m.ClientToken, doc.whole()})
}

// AnswerVersion answers an update whose version differs with the whole shadow, in
// the shape of [AnswerGet].
func AnswerVersion(m Message, doc *Document, nowSeconds int64) []byte {
	return encode(answer{m.Type, ResultVersion, nowSeconds, m.ClientToken, doc.whole()})
}

// AnswerUpdate answers an update that was made; doc is the shadow after it. The
// payload holds what was sent and nothing else: the reported or desired fields with
// their metadata, null for a deleted one with the time of the deletion, and
// "desired":null where the desired part was cleared.
func AnswerUpdate(m Message, doc *Document, nowSeconds int64) []byte {
	p := &payload{State: Object{}, Metadata: Object{}, Version: doc.Version, Timestamp: doc.Timestamp}
	if sent := m.Update.Reported; sent != nil {
		p.State[reportedPart] = sent
		p.Metadata[reportedPart] = doc.timesOfPart(sent, doc.Metadata.Reported)
	}
	if sent := m.Update.Desired; sent != nil {
		p.State[desiredPart] = sent
		p.Metadata[desiredPart] = doc.timesOfPart(sent, doc.Metadata.Desired)
	}
	if m.Update.ClearDesired {
		p.State[desiredPart] = nil
	}
	return encode(answer{m.Type, ResultOK, nowSeconds, m.ClientToken, p})
}

// AnswerError answers a message that was not carried out. Its type is absent where
// the message had none.
func AnswerError(m Message, result Result, nowSeconds int64) []byte {
	return encode(answer{m.Type, result, nowSeconds, m.ClientToken, nil})
}

// whole is the whole shadow as a payload.
func (d *Document) whole() *payload {
	p := &payload{State: Object{}, Metadata: Object{}, Version: d.Version, Timestamp: d.Timestamp}
	p.State[reportedPart] = orEmpty(d.Reported)
	p.Metadata[reportedPart] = d.timesOfPart(d.Reported, d.Metadata.Reported)
	if d.Desired != nil {
		p.State[desiredPart] = d.Desired
		p.Metadata[desiredPart] = d.timesOfPart(d.Desired, d.Metadata.Desired)
		if delta := d.Delta(); delta != nil {
			p.State["delta"] = delta.State
		}
	}
	return p
}

// timesOfPart is timesOf for a part, which even without fields is no leaf.
func (d *Document) timesOfPart(state, meta Object) Object {
	if len(state) == 0 {
		return Object{}
	}
	return d.timesOf(state, meta)
}

func orEmpty(o Object) Object {
	if o == nil {
		return Object{}
	}
	return o
}
