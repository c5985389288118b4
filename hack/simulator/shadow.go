package simulator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// maxRepeat is how long the pauses between repetitions become.
const maxRepeat = time.Minute

// Shadow is what a device makes of its shadow.
type Shadow struct {
	// State is the state of the device, a JSON object: what it was told to be.
	State string
	// Version is the version of the shadow that the device last heard of.
	Version int64
}

// keeper looks after a device's shadow as the libraries for devices do: it gets it
// after each connect, does what it is told, and reports that. What it sends has
// QoS 0, so it sends it again until there is an answer.
type keeper struct {
	topic   string // of what it sends
	publish func(topic string, payload []byte)
	prefix  string        // of the tokens
	repeat  time.Duration // pause before the first repetition
	keep    int

	online chan struct{} // of size 1: the device is connected and subscribed
	heard  chan shadowMessage
	ended  chan struct{}
	once   sync.Once

	// Of run alone:
	requests int
	pending  *request // sent and not answered
	timer    *time.Timer
	state    map[string]any

	mu     sync.Mutex
	shadow Shadow // written by run alone
	dialog []Message
}

// request is a message of the device.
type request struct {
	payload []byte
	token   string
	pause   time.Duration // before it is sent again
}

// shadowMessage is what comes to a device about its shadow: a delta, or an answer.
type shadowMessage struct {
	Type        string `json:"type"`
	Result      int    `json:"result"`
	ClientToken string `json:"clientToken"`
	Payload     struct {
		State   json.RawMessage `json:"state"`
		Version int64           `json:"version"`
	} `json:"payload"`
}

// outgoing is what a device sends about its shadow.
type outgoing struct {
	Type        string         `json:"type"`
	State       *outgoingState `json:"state,omitempty"`
	Version     int64          `json:"version,omitempty"`
	ClientToken string         `json:"clientToken"`
}

type outgoingState struct {
	Reported json.RawMessage `json:"reported,omitempty"`
	Desired  *struct{}       `json:"desired"` // always null: a device can only clear it
}

const (
	typeDelta     = "delta"
	typeGet       = "get"
	typeUpdate    = "update"
	resultOK      = 0
	resultVersion = 5005 // of another version; the answer has the whole shadow
)

func newKeeper(topic string, publish func(string, []byte), prefix string, opts Options) *keeper {
	return &keeper{
		topic: topic, publish: publish, prefix: prefix, repeat: opts.AnswerTimeout, keep: opts.Keep,
		online: make(chan struct{}, 1), heard: make(chan shadowMessage), ended: make(chan struct{}),
		state: map[string]any{}, shadow: Shadow{State: "{}"},
	}
}

// run keeps the shadow until end is called.
func (k *keeper) run() {
	k.timer = time.NewTimer(k.repeat)
	defer k.timer.Stop()
	for {
		select {
		case <-k.ended:
			return
		case <-k.online:
			k.get()
		case m := <-k.heard:
			k.take(m)
		case <-k.timer.C:
			if k.pending != nil {
				k.pending.pause = min(2*k.pending.pause, maxRepeat)
				k.send()
			}
		}
	}
}

func (k *keeper) end() { k.once.Do(func() { close(k.ended) }) }

// connected says that the device can hear: what it has missed, it gets now.
func (k *keeper) connected() {
	select {
	case k.online <- struct{}{}:
	default: // It will be noticed anyway.
	}
}

// hear hands a message over. It says whether a task has sent it: others are the
// answers to what the device has sent.
func (k *keeper) hear(topic string, payload []byte) (fromTask bool) {
	var m shadowMessage
	if err := json.Unmarshal(payload, &m); err != nil {
		return true // To be counted and kept, and seen by whoever looks.
	}
	if fromTask = m.Type == typeDelta; !fromTask {
		k.remember(topic, payload)
	}
	select {
	case k.heard <- m:
	case <-k.ended:
	}
	return fromTask
}

func (k *keeper) take(m shadowMessage) {
	switch {
	case m.Type == typeDelta && m.Payload.Version > k.shadow.Version:
		k.comply(m.Payload.State, m.Payload.Version)
	case m.Type == typeDelta:
		// It comes twice, or late, or the shadow was made anew.
		k.get()
	case k.pending == nil || m.ClientToken != k.pending.token:
		// The second answer to something that was sent twice, or the answer to
		// something that is out of date.
	case m.Type == typeGet && m.Result == resultOK, m.Result == resultVersion:
		k.takeWhole(m)
	case m.Result == resultOK:
		k.settle(m.Payload.Version)
	default:
		// The device is not known yet, or its shadow cannot be stored: it tries again.
	}
}

// takeWhole does what the whole shadow says.
func (k *keeper) takeWhole(m shadowMessage) {
	var whole struct{ Desired, Delta json.RawMessage }
	if err := json.Unmarshal(m.Payload.State, &whole); err != nil {
		return
	}
	if whole.Desired == nil {
		k.settle(m.Payload.Version)
		return
	}
	k.comply(whole.Delta, m.Payload.Version)
}

// settle notes the version; nothing is left to do.
func (k *keeper) settle(version int64) {
	k.pending = nil
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shadow.Version = version
}

// comply does what is desired in a version of the shadow, and reports it. Where
// more was desired meanwhile the version differs, and nothing of that is cleared.
func (k *keeper) comply(delta json.RawMessage, version int64) {
	k.apply(delta, version)
	k.request(outgoing{Type: typeUpdate, State: &outgoingState{Reported: delta}, Version: version})
}

func (k *keeper) apply(delta json.RawMessage, version int64) {
	changes := map[string]any{}
	decoder := json.NewDecoder(bytes.NewReader(delta))
	decoder.UseNumber()
	_ = decoder.Decode(&changes) // Without a delta there is nothing to change.
	merge(k.state, changes)
	text, err := json.Marshal(k.state)
	if err != nil {
		panic(fmt.Sprintf("encoding what was decoded: %v", err))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shadow = Shadow{State: string(text), Version: version}
}

// merge does what a JSON merge patch does (RFC 7396).
func merge(into, changes map[string]any) {
	for key, value := range changes {
		inner, isObject := value.(map[string]any)
		switch before, wasObject := into[key].(map[string]any); {
		case value == nil:
			delete(into, key)
		case isObject && wasObject:
			merge(before, inner)
		case isObject:
			fresh := map[string]any{}
			merge(fresh, inner)
			into[key] = fresh
		default:
			into[key] = value
		}
	}
}

func (k *keeper) get() { k.request(outgoing{Type: typeGet}) }

// request sends a message in the place of what is still unanswered: a get tells
// what became of that, and an update is of a newer version.
func (k *keeper) request(message outgoing) {
	k.requests++
	message.ClientToken = fmt.Sprintf("%s-%d", k.prefix, k.requests)
	payload, err := json.Marshal(message)
	if err != nil {
		panic(fmt.Sprintf("encoding a message about a shadow: %v", err))
	}
	k.pending = &request{payload: payload, token: message.ClientToken, pause: k.repeat}
	k.send()
}

func (k *keeper) send() {
	k.remember(k.topic, k.pending.payload)
	k.publish(k.topic, k.pending.payload)
	k.timer.Reset(k.pending.pause)
}

// remember keeps a message that came or was sent.
func (k *keeper) remember(topic string, payload []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dialog = keepLast(k.dialog, Message{Topic: topic, Payload: string(payload)}, k.keep)
}
