package service

import (
	"context"
	"errors"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// answer carries a message out, while ctx allows it. The error says why the result is
// not 0.
func (s *Service) answer(ctx context.Context, l *line, m shadow.Message) ([]byte, shadow.Result, error) {
	namespace, err := s.namespace(ctx, l)
	if err != nil {
		return s.failure(m, err)
	}
	p := fleet.Product{Namespace: namespace, ProductID: l.device.productID}
	if m.Type == shadow.TypeGet {
		return s.get(ctx, p, l, m)
	}
	return s.update(ctx, p, l, m)
}

func (s *Service) failure(m shadow.Message, err error) ([]byte, shadow.Result, error) {
	result := shadow.ResultOf(err)
	if errors.Is(err, fleet.ErrDeviceGone) {
		result = shadow.ResultNoShadow
	}
	return shadow.AnswerError(m, result, s.now()), result, err
}

func (s *Service) namespace(ctx context.Context, l *line) (namespace string, err error) {
	err = s.retry(ctx, l, func() error {
		namespace, err = s.products.Namespace(ctx, l.device.productID)
		return err
	})
	if err == nil {
		s.queue.owned(l, namespace)
	}
	if err == nil && namespace == "" {
		err = fleet.ErrDeviceGone // where there is no product there is no device of it
	}
	return namespace, err
}

func (s *Service) get(ctx context.Context, p fleet.Product, l *line, m shadow.Message) ([]byte, shadow.Result, error) {
	var stored fleet.Shadow
	err := s.call(ctx, l, func() (err error) {
		stored, err = s.store.ReadShadow(ctx, p, l.device.name)
		return err
	})
	if err != nil {
		return s.failure(m, err)
	}
	doc, err := stored.Document()
	if err != nil {
		return s.failure(m, err)
	}
	return shadow.AnswerGet(m, doc, s.now()), shadow.ResultOK, nil
}

func (s *Service) update(ctx context.Context, p fleet.Product, l *line, m shadow.Message) ([]byte, shadow.Result, error) {
	var doc *shadow.Document
	var tried fleet.Shadow // what was last handed to the store
	change := func(was fleet.Shadow) (fleet.Shadow, error) {
		var err error
		if doc, err = was.Document(); err != nil {
			return fleet.Shadow{}, err
		}
		if tried.Version > 0 && was.Equal(tried) {
			// An attempt before this one was written, only the store's answer was lost. Made
			// again it would count twice, or fail for its version.
			return was, nil
		}
		if err := doc.Update(m.Update, s.clock.Now()); err != nil {
			return fleet.Shadow{}, err
		}
		tried = was.With(doc)
		return tried, nil
	}
	err := s.call(ctx, l, func() error { return s.store.ChangeShadow(ctx, p, l.device.name, change) })
	switch {
	case errors.Is(err, shadow.ErrVersion):
		return shadow.AnswerVersion(m, doc, s.now()), shadow.ResultVersion, err
	case err != nil:
		return s.failure(m, err)
	default:
		return shadow.AnswerUpdate(m, doc, s.now()), shadow.ResultOK, nil
	}
}

// now is the time in Unix seconds.
func (s *Service) now() int64 { return s.clock.Now().Unix() }
